"""Flat parameters: the function equals the network, its derivatives are the network's, and nothing is shared."""

import pytest
import torch
from torch import nn

from raydd.keyed import torch_rng
from raydd.models.flat import FlatNet
from raydd.models.registry import build_model

IMAGES = torch.randn(3, 3, 8, 8, generator=torch_rng("flat"))


def build(arch: str = "convnet2", norm: str = "instance") -> nn.Module:
    return build_model(arch, num_classes=4, image_size=8, norm=norm, width=8)


@pytest.mark.parametrize("arch", ["convnet2", "vit_dd", "resnetap10"])
def test_the_function_at_the_own_parameters_is_the_network(arch):
    net = build(arch)
    flat = FlatNet(net)
    assert len(flat) == sum(p.numel() for p in net.parameters()) == len(flat.parameters())
    # Not to the bit: a view into a long vector is aligned otherwise, which some kernels can tell.
    torch.testing.assert_close(flat(flat.parameters(), IMAGES), net(IMAGES), rtol=1e-5, atol=1e-6)


def test_order_and_shapes_are_those_of_named_parameters():
    net = build()
    flat = FlatNet(net)
    parts = flat.split(flat.parameters())
    assert list(parts) == flat.names == [name for name, _ in net.named_parameters()]
    for name, parameter in net.named_parameters():
        assert torch.equal(parts[name], parameter)


def test_the_gradient_is_the_networks():
    net = build().double()
    flat, images = FlatNet(net), IMAGES.double()
    point = flat.parameters().requires_grad_()
    (found,) = torch.autograd.grad(flat(point, images).square().sum(), point)
    net(images).square().sum().backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=1e-12, atol=1e-12)


def test_another_point_is_another_network_and_leaves_the_own_one():
    net, other = build(), build_model("convnet2", num_classes=4, image_size=8, norm="instance", width=8, seed=1)
    flat, before = FlatNet(net), FlatNet(net).parameters()
    point = FlatNet(other).parameters().requires_grad_()
    logits = flat(point, IMAGES)
    torch.testing.assert_close(logits, other(IMAGES), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits, net(IMAGES), atol=0.01)
    logits.sum().backward()
    assert torch.equal(flat.parameters(), before) and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("net", [build(), nn.Linear(2, 3, bias=False)], ids=["many", "one"])
def test_parameters_are_a_copy(net):
    flat = FlatNet(net)
    copied = flat.parameters()
    before = copied.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert torch.equal(copied, before) and not copied.requires_grad


def test_a_vector_of_float64_needs_no_network_of_float64():
    flat = FlatNet(build())
    logits = flat(flat.parameters().double(), IMAGES.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), flat(flat.parameters(), IMAGES), rtol=1e-4, atol=1e-5)


def test_networks_with_buffers_are_refused():
    with pytest.raises(ValueError, match="ConvNet has buffers"):
        FlatNet(build(norm="batch"))
