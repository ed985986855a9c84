"""Float conditions give the bits of the labels they came from, in every network; what has no table is named."""

import pytest
import torch
from tiny_networks import tiny_autoencoder, tiny_dit, tiny_unet
from torch import nn

from raydd.errors import UserError
from raydd.models.prior.autoencoder import Latents, Pixels
from raydd.models.prior.conditions import LabelOrCondition, open_conditions
from raydd.models.prior.opened import OpenedPrior
from raydd.models.prior.schedule import read_table

LABELS = torch.tensor([2, 0, 1])
TABLE = read_table({"beta_schedule": "linear", "clip_sample": False}, pixels=True)


def random(net: nn.Module, dtype=torch.float32) -> nn.Module:
    """Weights that are nowhere zero, as a fresh DiT's last layers are."""
    rng = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    return nn.Module.to(net, dtype).eval().requires_grad_(False)


def dit(equal: bool, dtype=torch.float32) -> nn.Module:
    net = random(tiny_dit(layers=3), dtype)
    if equal:
        tables = [block.norm1.emb.class_embedder.embedding_table for block in net.transformer_blocks]
        for table in tables[1:]:
            table.weight.data = tables[0].weight.data.clone()
    return net


def prior_of(net: nn.Module, labels=(0, 1, 2)) -> OpenedPrior:
    space = Latents(tiny_autoencoder()) if hasattr(net, "transformer_blocks") else Pixels(3)
    return OpenedPrior(net, space, TABLE, latent_size=8, labels=list(labels), null=3, num_classes=3)


NETS = {
    "equal tables": (lambda dtype: dit(True, dtype), (16,)),
    "different tables": (lambda dtype: dit(False, dtype), (3, 16)),
    "unet": (lambda dtype: random(tiny_unet(num_class_embeds=4), dtype), (32,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [1, 2.5])
@pytest.mark.parametrize("kind", NETS)
def test_conditions_are_the_labels_to_the_bit(kind, guidance, dtype):
    make, shape = NETS[kind]
    prior, untouched = prior_of(make(dtype)), prior_of(make(dtype))
    x = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(1))
    schedule, c = prior.schedule(10), prior.conditions(LABELS)
    assert c.shape == (3, *shape) and c.dtype == torch.float32
    for i in (0, 9):
        never_opened = untouched.denoise(x, schedule, i, LABELS, guidance)
        for given in (LABELS, c):
            found = prior.denoise(x, schedule, i, given, guidance)
            assert torch.equal(found.noise, never_opened.noise) and torch.equal(found.clean, never_opened.clean)
    other = prior.denoise(x, schedule, 9, c + 0.5, guidance)
    assert not torch.equal(other.noise, never_opened.noise)


def test_rows_reach_the_blocks_they_belong_to():
    """A condition whose row k is a label's row of table k, row by row from different labels."""
    net = dit(False)
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in net.transformer_blocks]
    found = open_conditions(net)
    assert torch.equal(found, torch.stack([table.detach() for table in tables], 1)) and found.shape == (4, 3, 16)
    for k, block in enumerate(net.transformer_blocks):
        assert torch.equal(block.norm1.emb.class_embedder(found[[1, 3]]), tables[k][[1, 3]])


@pytest.mark.parametrize("kind", NETS)
def test_opening_again_wraps_nothing_twice(kind):
    net = NETS[kind][0](torch.float32)
    first, second = open_conditions(net), open_conditions(net)
    assert torch.equal(first, second)
    wrapped = [module for module in net.modules() if isinstance(module, LabelOrCondition)]
    assert len(wrapped) == (1 if kind == "unet" else 3)
    assert not any(isinstance(module.embedder, LabelOrCondition) for module in wrapped)
    # Returned tables are copies: what is learned does not write into the network.
    first += 1
    assert torch.equal(open_conditions(net), second)


@pytest.mark.parametrize("kind", NETS)
def test_gradients_equal_central_differences(kind):
    """Through both halves of guidance, of which the null half is frozen."""
    prior = prior_of(NETS[kind][0](torch.float64))
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, *prior.latent_shape, generator=rng, dtype=torch.float64)
    c = prior.conditions(LABELS[:2]).double().requires_grad_()
    way = torch.randn(c.shape, generator=rng, dtype=torch.float64)
    weight = torch.randn(x.shape, generator=rng, dtype=torch.float64)

    def value(condition):
        return (prior.denoise(x, prior.schedule(10), 4, condition, 2.0).noise * weight).sum()

    slope = (torch.autograd.grad(value(c), c)[0] * way).sum()
    with torch.no_grad():
        found = (value(c + 1e-5 * way) - value(c - 1e-5 * way)) / 2e-5
    assert float(slope) == pytest.approx(float(found), rel=1e-6) and abs(slope) > 1e-6


def test_conditions_from_a_file_need_no_labels_first():
    """A resumed run has conditions before anyone asked for those of a label."""
    prior, x = prior_of(dit(False)), torch.ones(3, 4, 8, 8)
    c, schedule = prior.conditions(LABELS), prior.schedule(5)
    for guidance in (1, 2.0):
        found = prior_of(dit(False)).denoise(x, schedule, 2, c, guidance)
        assert torch.equal(found.noise, prior.denoise(x, schedule, 2, LABELS, guidance).noise)


def test_conditions_are_of_the_callers_labels():
    net = dit(False)
    plain, mapped = prior_of(net), prior_of(net, labels=(2, 0, 1))
    assert torch.equal(mapped.conditions(torch.tensor([0, 1])), plain.conditions(torch.tensor([2, 0])))


def test_unconditional_networks_have_none():
    prior = OpenedPrior(tiny_unet(), Pixels(3), TABLE, latent_size=8, labels=None, null=None, num_classes=None)
    assert prior.conditions(LABELS) is None and open_conditions(tiny_unet()) is None


def test_what_is_not_where_expected_is_named():
    other = tiny_unet(class_embed_type="identity")
    with pytest.raises(UserError, match=r"UNet2DModel embeds classes by a Identity, where .* use another prior"):
        open_conditions(other)
    net = dit(False)
    net.transformer_blocks[1].norm1 = nn.LayerNorm(16)
    with pytest.raises(UserError, match=r"a block of DiTTransformer2DModel has a LayerNorm where .* use another prior"):
        open_conditions(net)
