"""DM and DC against loops over their formulas, their values on identical batches, and central differences (float64)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.augment.dsa import Dsa, draw_dsa
from raydd.augment.dsa import apply_dsa as augment
from raydd.distill.ld3m.matching import dc_loss, dm_loss, dm_to, features, real_mean
from raydd.keyed import numpy_rng, torch_rng
from raydd.models.convnet import ConvNet
from raydd.models.registry import build_model

SIZE, LABEL = 8, 1
DSA = draw_dsa(numpy_rng("matching"), 1, "all")
PLAIN = Dsa(DSA.uniform, ())


def draw(count: int, key: object) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch_rng(key), dtype=torch.float64)


def make_net(depth: int = 2, norm: str = "instance") -> ConvNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ConvNet(depth, 4, SIZE, width=8, norm=norm).double()


REAL, SYNTHETIC = draw(6, "real"), draw(3, "synthetic")
EQUAL = {"rtol": 1e-12, "atol": 1e-12}


def assert_slope(loss, images: torch.Tensor) -> None:
    """The gradient of `loss` along a few directions equals central differences."""
    images = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(images), images)
    for n in range(3):
        way, h = draw(len(images), ("way", n)), 1e-6
        found = (loss(images.detach() + h * way) - loss(images.detach() - h * way)) / (2 * h)
        assert found.item() == pytest.approx(float((grad * way).sum()), rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_features_of_a_convnet_are_its_flattened_map(depth):
    net = make_net(depth)
    assert torch.equal(features(net, REAL), net.features(REAL).flatten(1))


@pytest.mark.parametrize(
    ("arch", "size", "head"), [("resnetap10", 16, "fc"), ("vit_dd", 8, None), ("cifar_resnet20", 8, "linear")]
)
def test_features_of_other_networks_are_what_the_classifier_reads(arch, size, head):
    net = build_model(arch, num_classes=3, image_size=size, norm="instance", width=8)
    images = torch.randn(2, 3, size, size, generator=torch_rng("images"))
    layer = getattr(net, head) if head else [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(layer(features(net, images)), net(images))
    assert not layer._forward_pre_hooks


def test_dm_is_the_squared_distance_of_mean_features():
    net, total = make_net(), 0.0
    maps = [[net.features(augment(x[None], DSA)).flatten().tolist() for x in side] for side in (REAL, SYNTHETIC)]
    for f in range(8 * 2 * 2):
        real, synthetic = (sum(row[f] for row in side) / len(side) for side in maps)
        total += (real - synthetic) ** 2
    assert dm_loss(net, REAL, SYNTHETIC, DSA).item() == pytest.approx(total, rel=1e-12)


def test_dm_of_the_real_batch_itself_is_zero():
    assert dm_loss(make_net(), REAL, REAL.clone(), DSA) == 0
    assert dm_loss(make_net(), REAL, SYNTHETIC, DSA) > 0


def test_dm_gradient_equals_central_differences():
    net = make_net()
    assert_slope(lambda images: dm_loss(net, REAL, images, DSA), SYNTHETIC)


def test_real_mean_may_be_computed_in_batches_and_stored():
    net = make_net()
    mean = (2 * real_mean(net, REAL[:2], DSA) + 4 * real_mean(net, REAL[2:], DSA)) / 6
    assert mean.shape == (32,) and not mean.requires_grad
    torch.testing.assert_close(dm_to(mean, net, SYNTHETIC, DSA), dm_loss(net, REAL, SYNTHETIC, DSA), **EQUAL)


def gradients(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """By loss.backward() on a copy, image by image."""
    net = copy.deepcopy(net)
    for image in augment(images, DSA):
        (F.cross_entropy(net(image[None]), torch.tensor([LABEL])) / len(images)).backward()
    return [p.grad for p in net.parameters()]


def rows(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return [row.flatten() for g in gradients(net, images) if g.dim() in (2, 4) for row in g]


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_dc_layers_is_a_sum_over_rows(eps):
    net = make_net()
    pairs = list(zip(rows(net, REAL), rows(net, SYNTHETIC)))
    assert len(pairs) == 8 + 8 + 4
    expected = sum(1 - float(a @ b) / (float(a.norm() * b.norm()) + eps) for a, b in pairs)
    loss = dc_loss(net, REAL, SYNTHETIC, LABEL, DSA, eps=eps)
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-12)


def test_dc_other_distances_see_all_parameters():
    net = make_net()
    a, b = (torch.cat([g.flatten() for g in gradients(net, images)]) for images in (REAL, SYNTHETIC))
    assert len(a) == sum(p.numel() for p in net.parameters())
    mse = dc_loss(net, REAL, SYNTHETIC, LABEL, DSA, distance="mse")
    torch.testing.assert_close(mse, ((a - b) ** 2).sum(), **EQUAL)
    cos = dc_loss(net, REAL, SYNTHETIC, LABEL, DSA, distance="cos")
    torch.testing.assert_close(cos, 1 - a @ b / (a.norm() * b.norm() + 1e-6), **EQUAL)
    with pytest.raises(ValueError, match="'layers', 'mse' or 'cos'"):
        dc_loss(net, REAL, SYNTHETIC, LABEL, DSA, distance="cosine")


def test_dc_of_the_real_batch_itself():
    net = make_net()
    expected = sum(1e-6 / (float(g @ g) + 1e-6) for g in rows(net, REAL))
    assert expected > 1e-6
    assert dc_loss(net, REAL, REAL.clone(), LABEL, DSA).item() == pytest.approx(expected, abs=1e-12)
    assert abs(dc_loss(net, REAL, REAL.clone(), LABEL, DSA, eps=0).item()) < 1e-12


def test_dc_rows_of_zero_gradient():
    """A dead channel: one row counts 1 with eps, and is left out, also of the gradient, with none."""
    net = make_net(1)
    with torch.no_grad():
        net.features[0][1].weight[0], net.features[0][1].bias[0] = 0, -1
    assert not rows(net, REAL)[0].any()
    images = SYNTHETIC.clone().requires_grad_()
    for eps, own in ((1e-6, 1.0), (0.0, 0.0)):
        loss = dc_loss(net, REAL, images, LABEL, DSA, eps=eps)
        others = zip(rows(net, REAL)[1:], rows(net, SYNTHETIC)[1:])
        expected = own + sum(1 - float(a @ b) / (float(a.norm() * b.norm()) + eps) for a, b in others)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        (grad,) = torch.autograd.grad(loss, images)
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("distance", ["layers", "mse", "cos"])
def test_dc_gradient_equals_central_differences(distance):
    net = make_net()
    assert_slope(lambda images: dc_loss(net, REAL, images, LABEL, DSA, distance=distance), SYNTHETIC)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("loss", [dm_loss, lambda net, a, b, dsa: dc_loss(net, a, b, LABEL, dsa)], ids=["dm", "dc"])
def test_only_the_synthetic_images_get_a_gradient(loss, frozen):
    net = make_net().requires_grad_(not frozen)
    before = copy.deepcopy(net.state_dict())
    real, synthetic = REAL.clone().requires_grad_(), SYNTHETIC.clone().requires_grad_()
    loss(net, real, synthetic, DSA).backward()
    assert synthetic.grad.any() and real.grad is None
    assert all(p.grad is None and p.requires_grad is not frozen for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_both_sides_are_augmented():
    """Losses of augmented batches are those of batches augmented beforehand."""
    net, real, synthetic = make_net(), augment(REAL, DSA), augment(SYNTHETIC, DSA)
    torch.testing.assert_close(dm_loss(net, REAL, SYNTHETIC, DSA), dm_loss(net, real, synthetic, PLAIN), **EQUAL)
    found, expected = dc_loss(net, REAL, SYNTHETIC, LABEL, DSA), dc_loss(net, real, synthetic, LABEL, PLAIN)
    torch.testing.assert_close(found, expected, **EQUAL)
