"""Every form of the per-sample convolution norm equals autograd in float64, and the forms equal each other."""

import itertools

import pytest
import torch
from torch import nn

from raydd.score.conv_rule import (
    conv_ghost,
    conv_instantiated,
    conv_norm,
    conv_unfolded,
    ghost_first,
    sq,
    sub_batches,
)

LAYERS = {
    "plain": dict(),
    "bias": dict(bias=True),
    "stride": dict(stride=2),
    "rectangle": dict(kernel_size=(3, 5), stride=(2, 1), padding=(0, 2)),
    "dilation": dict(dilation=2, padding=2),
    "one": dict(kernel_size=1, padding=0, stride=2),
    "groups": dict(groups=2, bias=True),
    "depthwise": dict(groups=4),
    "same": dict(padding="same", kernel_size=4),
    "reflect": dict(padding_mode="reflect", bias=True),
    "circular": dict(padding_mode="circular", stride=2),
    "large": dict(kernel_size=7, padding=3, stride=2),
}


def case(name: str, size: int = 9) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    options = dict(kernel_size=3, padding=1, bias=False) | LAYERS[name]
    layer = nn.Conv2d(4, 6 if name != "depthwise" else 8, **options).double()
    a = torch.randn(5, 4, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        g = torch.randn(layer(a).shape, dtype=torch.float64, generator=generator)
    return layer, a, g


def reference(layer: nn.Conv2d, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Squared norm of the gradient of sum(out * g) for one sample at a time."""
    norms = []
    for i in range(len(a)):
        loss = (layer(a[i : i + 1]) * g[i : i + 1]).sum()
        norms.append(sum(p.square().sum() for p in torch.autograd.grad(loss, list(layer.parameters()))))
    return torch.stack(norms)


@pytest.mark.parametrize("name, scratch", list(itertools.product(LAYERS, [1, 1 << 30])))
def test_rule_equals_autograd(name, scratch):
    layer, a, g = case(name)
    torch.testing.assert_close(conv_norm(layer, a, g, scratch), reference(layer, a, g), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", [n for n in LAYERS if LAYERS[n].get("padding_mode") is None and n != "same"])
@pytest.mark.parametrize("scratch", [1, 20_000, 1 << 30])
def test_forced_forms_are_equal(name, scratch):
    layer, a, g = case(name)
    layer.bias = None
    expected = reference(layer, a, g)
    forms = [conv_instantiated, conv_unfolded] + ([conv_ghost] if layer.groups == 1 else [])
    for form in forms:
        torch.testing.assert_close(form(layer, a, g, layer.padding, scratch), expected, rtol=1e-10, atol=0)


def test_large_maps_go_through_the_library_one_by_one():
    layer, a, g = case("plain", size=80)
    torch.testing.assert_close(
        conv_instantiated(layer, a, g, (1, 1), 1 << 30), reference(layer, a, g), rtol=1e-10, atol=0
    )


def test_channels_last_maps_give_the_same():
    layer, a, g = case("plain")
    last = [t.to(memory_format=torch.channels_last) for t in (a, g)]
    for form in (conv_ghost, conv_instantiated, conv_unfolded):
        torch.testing.assert_close(form(layer, *last, (1, 1), 1 << 30), form(layer, a, g, (1, 1), 1 << 30))


def test_small_maps_with_many_channels_take_the_ghost_form():
    wide, narrow = nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    assert ghost_first(wide, torch.empty(1, 512, 7, 7), torch.empty(1, 512, 7, 7), (1, 1))
    assert not ghost_first(narrow, torch.empty(1, 16, 32, 32), torch.empty(1, 16, 32, 32), (1, 1))


def test_sub_batches_cover_the_batch_within_the_budget():
    parts = list(sub_batches(10, 100, 350))
    assert [len(range(10)[p]) for p in parts] == [3, 3, 3, 1]
    assert [len(range(4)[p]) for p in sub_batches(4, 1000, 1)] == [1, 1, 1, 1]
    torch.testing.assert_close(sq(torch.arange(6.0).view(2, 3)), torch.tensor([5.0, 50.0]))
