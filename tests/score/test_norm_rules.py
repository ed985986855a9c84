"""Each layer rule equals a one-sample autograd loop in float64, for every shape of input that the layer takes."""

import pytest
import torch
from torch import nn

from raydd.models.torchvisions import torchvision_models
from raydd.score.norm_rules import linear_norm, row_ghost, rule_of

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "linear, few rows": (lambda: nn.Linear(20, 30), (3, 20)),
    "linear, many rows": (lambda: nn.Linear(5, 4), (30, 5)),
    "linear on a map": (lambda: nn.Linear(5, 4, bias=False), (4, 4, 5)),
    "batch norm": (lambda: _running(nn.BatchNorm2d(4)), (4, 5, 5)),
    "batch norm 1d": (lambda: _running(nn.BatchNorm1d(4)), (4,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 5, 5)),
    "instance norm, running": (
        lambda: _running(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        (4, 5, 5),
    ),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6)),
    "layer norm, one row": (lambda: nn.LayerNorm(6), (6,)),
    "layer norm without bias": (lambda: nn.LayerNorm((5, 6), bias=False), (3, 5, 6)),
    "conv": (lambda: nn.Conv2d(4, 3, 3), (4, 5, 5)),
}


def _running(norm: nn.Module) -> nn.Module:
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    return norm


def check(layer: nn.Module, a: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        g = torch.randn(layer(a).shape, dtype=torch.float64, generator=generator)
    expected = []
    for i in range(len(a)):
        loss = (layer(a[i : i + 1]) * g[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        expected.append(sum(p.square().sum() for p in gradients))
    for scratch in (1, 1 << 30):
        found = rule_of(layer)(layer, a, g, scratch)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_rule_equals_autograd(name):
    build, shape = LAYERS[name]
    check(build(), torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_adds_up_equal_ids(padding):
    ids = torch.tensor([[0, 1, 1, 2], [3, 3, 3, 3], [2, 2, 0, 0]])
    check(nn.Embedding(5, 3, padding_idx=padding), ids)


def test_layer_norm_over_channels_of_a_map():
    torchvision_models()
    from torchvision.models.convnext import LayerNorm2d

    check(LayerNorm2d(4), torch.randn(3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def test_ghost_equals_instantiated_for_rows():
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(4, 7, n, dtype=torch.float64, generator=generator) for n in (5, 6))
    layer = nn.Linear(5, 6, bias=False).double()
    torch.testing.assert_close(row_ghost(a, g), (g.mT @ a).square().sum((1, 2)))
    torch.testing.assert_close(linear_norm(layer, a, g, 1 << 30), row_ghost(a, g))


def test_unknown_types_and_subclasses_have_no_rule():
    class Scaled(nn.Linear):
        pass

    assert rule_of(Scaled(2, 2)) is None and rule_of(nn.Conv1d(2, 2, 1)) is None and rule_of(nn.ReLU()) is None
