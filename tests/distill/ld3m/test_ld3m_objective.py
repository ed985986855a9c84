"""DM and DC over a pack equal sums of one class's losses, with networks, batches and augmentations drawn by key."""

import math

import pytest
import torch
from small_priors import draw

from raydd.augment.dsa import draw_dsa
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.matching import dc_loss, dm_loss
from raydd.distill.ld3m.objective import ClassMatching, Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.keyed import hash64, numpy_rng, torch_rng
from raydd.models.registry import build_model

NORMALIZE = Normalize((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
NAMES, LABELS, IPC = ("ant", "bee", "cat"), (4, 0, 2), 2
SYNTHETIC = draw(6, 3, 8, 8).float()


def reals(name: str, count: int = 7) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch_rng("reals", name))


def make(names=NAMES, seed: int = 1, given=None, ipc: int = IPC, **switches) -> ClassMatching:
    pack = Pack(names, tuple(LABELS[NAMES.index(name)] for name in names), num_classes=5, ipc=ipc, seed=seed)
    config = Ld3mConfig(**{"real_batch": 4, "heldout": 2} | switches)
    given = given or [reals(name) for name in names]
    return ClassMatching(pack, given, "convnet1", config, NORMALIZE, "cpu")


def by_hand(name: str, part: torch.Tensor, key: tuple, purpose: str, loss: str, batch: int = 4, **options):
    """One class's loss, with everything drawn from what the keys say."""
    net = build_model("convnet1", num_classes=5, image_size=8, norm="instance", seed=hash64(1, purpose, key[1]))
    order = numpy_rng(1, "real", name, *key).permutation(7)[:batch]
    real = torch.stack([(reals(name)[i] / 255 - torch.tensor([0.3, 0.4, 0.5])[:, None, None]) for i in sorted(order)])
    real = real / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    dsa = draw_dsa(numpy_rng(1, "dsa", name, *key))
    if loss == "dm":
        return dm_loss(net, real, part, dsa)
    return dc_loss(net, real, part, LABELS[NAMES.index(name)], dsa, **options)


@pytest.mark.parametrize(
    ("loss", "options"), [("dm", {}), ("dc", {"distance": "layers"}), ("dc", {"distance": "mse"})], ids=str
)
def test_an_iteration_is_a_sum_over_classes(loss, options):
    found, toward = make(loss=loss, **options)(3, SYNTHETIC)
    synthetic = SYNTHETIC.clone().requires_grad_()
    parts = zip(NAMES, synthetic.split(IPC))
    expected = sum(by_hand(name, part, ("iteration", 3), "net", loss, **options) for name, part in parts)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(toward, torch.autograd.grad(expected, synthetic)[0], rtol=1e-4, atol=1e-7)
    assert not toward.requires_grad and SYNTHETIC.grad is None


@pytest.mark.parametrize("loss", ["dm", "dc"])
def test_heldout_is_a_mean_over_draws_of_its_own(loss):
    objective = make(loss=loss)
    found = objective.heldout(SYNTHETIC)
    expected = 0.0
    for triple in range(2):
        for name, part in zip(NAMES, SYNTHETIC.split(IPC)):
            expected += float(by_hand(name, part, ("heldout", triple), "heldout", loss).detach()) / 2
    assert found == pytest.approx(expected, rel=1e-5)
    # What was kept of the first evaluation serves the second.
    assert objective.heldout(SYNTHETIC) == found
    assert objective.heldout(SYNTHETIC + 0.5) == make(loss=loss).heldout(SYNTHETIC + 0.5) != found
    iterations = [make(loss=loss)(iteration, SYNTHETIC)[0] for iteration in range(2)]
    assert math.fsum(iterations) / 2 != pytest.approx(found, rel=1e-4)


def test_no_heldout_draws():
    assert make(heldout=0).heldout(SYNTHETIC) is None


@pytest.mark.parametrize("loss", ["dm", "dc"])
def test_a_class_is_the_same_in_any_company(loss):
    whole = make(loss=loss)(5, SYNTHETIC)[1]
    for k, name in enumerate(NAMES):
        rows = slice(k * IPC, (k + 1) * IPC)
        assert torch.equal(make((name,), loss=loss)(5, SYNTHETIC[rows])[1], whole[rows])


def test_draws_differ_by_iteration_class_and_seed():
    losses = [make(seed=seed)(iteration, SYNTHETIC)[0] for seed in (1, 2) for iteration in (0, 1)]
    # The same images under the names of two classes meet different batches and augmentations.
    same = [make((name,), given=[reals("ant")])(0, SYNTHETIC[:2])[0] for name in NAMES]
    assert len(set(losses)) == 4 and len(set(same)) == 3
    assert make()(0, SYNTHETIC)[0] == losses[0]


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    make(loss="dc")(0, SYNTHETIC)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("loss", ["dm", "dc"])
def test_a_pool_of_draws_is_gone_through_again_and_again(loss):
    """The first round is that without a pool; what is kept of it serves other images and stays its own."""
    pooled, plain = make(loss=loss, pool=2), make(loss=loss)
    heldout = pooled.heldout(SYNTHETIC)
    for iteration in range(5):
        images = SYNTHETIC + 0.1 * iteration
        found, expected = pooled(iteration, images), plain(iteration % 2, images)
        assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert plain(2, SYNTHETIC)[0] != plain(0, SYNTHETIC)[0]
    assert pooled.heldout(SYNTHETIC) == heldout == plain.heldout(SYNTHETIC)


@pytest.mark.parametrize(("pool", "batches"), [(None, 6), (2, 4)])
def test_real_features_are_kept_in_a_pool_only(monkeypatch, pool, batches):
    objective, drawn = make(NAMES[:2], pool=pool), []
    monkeypatch.setattr(objective, "_real", lambda k, key, real=objective._real: drawn.append(key) or real(k, key))
    for iteration in (0, 1, 0):
        objective(iteration, SYNTHETIC[:4])
    assert len(drawn) == batches
    for _ in range(2):
        objective.heldout(SYNTHETIC[:4])
    assert len(drawn) == batches + 4


@pytest.mark.parametrize("batch", [7, 256])
def test_dm_of_all_real_images_is_zero_at_the_real_images(batch):
    """A class with fewer images than the batch gives all of them, each once."""
    objective = make(("ant",), real_batch=batch, ipc=7)
    loss, toward = objective(0, NORMALIZE(reals("ant").float() / 255))
    assert loss == 0 and not toward.any()
    assert objective(0, NORMALIZE(reals("bee").float() / 255))[0] > 0


def test_it_carries_nothing_along():
    objective = make()
    first = objective(2, SYNTHETIC)
    objective(3, SYNTHETIC + 1)
    objective.restore({"alpha": torch.zeros(())})
    assert objective.state() == {} and torch.equal(objective(2, SYNTHETIC)[1], first[1])


def test_normalize():
    pixels = draw(2, 3, 4, 4)
    found = NORMALIZE(pixels)
    assert found.dtype == torch.float64
    for channel in range(3):
        expected = (pixels[:, channel] - NORMALIZE.mean[channel]) / NORMALIZE.std[channel]
        torch.testing.assert_close(found[:, channel], expected)
