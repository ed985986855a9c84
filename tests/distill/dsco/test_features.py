"""The feature net: sizes, the published parameter count, the pooled last layer, and the gradient against autograd."""

import pytest
import torch

from raydd.distill.dsco import features
from raydd.distill.dsco.features import FeatureNet, feature_dtype, num_features
from raydd.keyed import torch_rng

SHAPES = [(2, 24, 26), (3, 14, 14), (1, 8, 8), (1, 7, 7), (2, 4, 4), (1, 9, 13), (1, 70, 7)]


def net_of(shape, dtype=torch.float64) -> FeatureNet:
    return FeatureNet(shape, "net", dtype=dtype)


def draw(shape, count=2) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch_rng("x"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("side", "features"),
    [(4, 256), (5, 256), (6, 512), (7, 512), (8, 512), (12, 1024), (14, 1024), (16, 1024), (28, 2048), (128, 2048)],
)
def test_features_by_size(side, features):
    assert num_features(side, side) == features


def test_parameters_of_the_published_net():
    net = net_of((4, 32, 32), torch.float32)
    tensors = [t for pair in net.convolutions for t in pair] + list(net.last[:2])
    assert sum(t.numel() for t in tensors) == 2_765_568


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pooled_taps_equal_the_pooled_map(shape):
    net, x = net_of(shape), draw(shape)
    maps = net.maps(x)
    assert maps.shape[1] == net.features and maps[0, 0].numel() == net.positions
    torch.testing.assert_close(net(x), maps.mean((2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_equals_autograd(shape):
    net, x = net_of(shape), draw(shape).requires_grad_()
    features = net.maps(x).mean((2, 3))
    weights = torch.randn(features.shape, generator=torch_rng("g"), dtype=torch.float64)
    (expected,) = torch.autograd.grad((features * weights).sum(), x)
    _, tape = net.forward(x.detach())
    torch.testing.assert_close(net.backward(tape, weights), expected, atol=1e-12, rtol=1e-10)


def test_fp32_and_bf16_stay_near_fp64():
    shape = (4, 16, 16)
    x = draw(shape, 20).float()
    exact = net_of(shape)(x)
    spread = exact.std(0)
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        found = net_of(shape, dtype)(x)
        assert found.dtype == torch.float32
        assert ((found - exact) / spread).abs().max() < bound


def test_a_key_is_a_net():
    one, same, other = (FeatureNet((1, 8, 8), 0, "phi", *more) for more in ((), (), ("cat",)))
    x = draw((1, 8, 8))
    assert torch.equal(one(x), same(x)) and not torch.equal(one(x), other(x))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_hardware_has_it(native, dtype, monkeypatch):
    monkeypatch.setattr(features, "native_bf16", lambda device: native)
    assert feature_dtype("auto", "cpu") == dtype
    assert feature_dtype("bf16", "cpu") == torch.bfloat16 and feature_dtype("fp64", "cpu") == torch.float64
