"""All-parameter norms equal a batch-1 autograd loop in float64, on whole networks; what is not covered falls back."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.models.convnet import ConvNet
from raydd.models.resnet import CifarResNet
from raydd.models.torchvisions import torchvision_models
from raydd.models.vit import ViT
from raydd.score.gradnorm import GradNorm
from raydd.score.outputs import Outputs


def torchvision_net(name: str, **options):
    return getattr(torchvision_models(), name)(num_classes=5, **options)


class TinyViT(nn.Module):
    """Packed attention, a class token and a position table, as in torchvision's vision transformer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.block(tokens)[:, 0])


NETS = {
    "resnet18": (lambda: torchvision_net("resnet18"), 32),
    "cifar resnet": (lambda: CifarResNet(8, 5), 16),
    "convnet, batch norm": (lambda: ConvNet(3, 5, 16, width=8), 16),
    "convnet, instance norm": (lambda: ConvNet(2, 5, 16, width=8, norm="instance"), 16),
    "convnet, group norm": (lambda: ConvNet(2, 5, 16, width=8, norm="group"), 16),
    "mobilenet": (lambda: torchvision_net("mobilenet_v2", width_mult=0.25), 32),
    "shufflenet": (lambda: torchvision_net("shufflenet_v2_x0_5"), 32),
    "convnext": (lambda: _convnext(), 32),
    "in-place relu after the first conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(True), *_head(4)), 8),
    "vit": (lambda: ViT(5, 16, width=16, norm="layer"), 16),
    "packed vit": (TinyViT, 16),
}


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def _convnext() -> nn.Module:
    torchvision_models()
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5, layer_scale=0.5)


def seeded(build) -> nn.Module:
    """The network in float64 and eval mode, with running statistics and affine weights away from their defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build().double().eval()
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return net


def batch(size: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % 5


def loop(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    parameters = [p.requires_grad_(True) for p in net.parameters()]
    norms = []
    for i in range(len(x)):
        loss = F.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None).sqrt())
    return torch.stack(norms)


@pytest.mark.parametrize("name", NETS)
def test_norms_equal_a_float64_loop(name):
    build, size = NETS[name]
    net, (x, y) = seeded(build), batch(size)
    engine = GradNorm(net)
    torch.testing.assert_close(engine(x, y), loop(net, x, y), rtol=1e-10, atol=0)
    assert engine.fallback is None


def test_frozen_teachers_and_little_scratch_give_the_same_and_flags_stay():
    net, (x, y) = seeded(NETS["cifar resnet"][0]), batch(16)
    expected = loop(net, x, y)
    net.requires_grad_(False)
    with torch.no_grad():
        found = GradNorm(net, max_unfold_bytes=1)(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_changes_of_the_weights_in_place_are_seen():
    net, (x, y) = seeded(NETS["convnet, batch norm"][0]), batch(16)
    engine = GradNorm(net)
    before = engine(x, y)
    with torch.no_grad():
        net.classifier.weight.mul_(2)
    after = engine(x, y)
    assert (before - after).abs().min() > 1e-6
    torch.testing.assert_close(after, loop(net, x, y), rtol=1e-10, atol=0)


def test_float32_is_accurate_and_typed():
    net, (x, y) = seeded(NETS["cifar resnet"][0]), batch(16)
    expected = loop(net, x, y)
    found = GradNorm(net.float())(x.float(), y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_batch_mates_do_not_matter():
    net, (x, y) = seeded(NETS["convnet, batch norm"][0]), batch(16, 6)
    engine = GradNorm(net)
    together = engine(x, y)
    torch.testing.assert_close(engine(x.flip(0), y.flip(0)).flip(0), together, rtol=1e-12, atol=0)
    torch.testing.assert_close(engine(x[:1], y[:1]), together[:1], rtol=1e-12, atol=0)


def test_last_layer_norm_is_the_engine_restricted_to_the_classifier():
    net, (x, y) = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5))), batch(8)
    expected = Outputs(net)(x, y)["gradnorm_last"]
    torch.testing.assert_close(GradNorm(net)(x, y).float(), expected, rtol=1e-5, atol=0)


class Shared(nn.Module):
    """One convolution that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 5)

    def forward(self, x):
        return self.head(F.avg_pool2d(self.conv(F.relu(self.conv(x))), 2).flatten(1))


class Unused(Shared):
    def forward(self, x):
        return self.head(F.avg_pool2d(x, 2).flatten(1))


class Functional(Shared):
    def forward(self, x):
        return self.head(F.avg_pool2d(F.conv2d(x, self.conv.weight, padding=1), 2).flatten(1))


class Transposed(nn.Module):
    """Rows in front of the batch, as many as samples: shapes alone cannot tell."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        tokens = F.adaptive_avg_pool2d(self.conv(x), (3, 1)).flatten(2).permute(2, 0, 1)
        return self.head(torch.tanh(self.rows(tokens)).pow(2).mean(0))


class Scaled(nn.Module):
    """A bare vector that does not broadcast when it gets a batch dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.head = nn.Conv2d(3, 4, 8), nn.Parameter(torch.randn(4)), nn.Linear(16, 5)

    def forward(self, x):
        row = F.relu(self.conv(x)).flatten(1).view(len(x), 1, 4) * self.scale
        return self.head(row.expand(-1, 4, -1).flatten(1))


@pytest.mark.parametrize("build", [Shared, Unused, Functional, Transposed, Scaled])
def test_what_the_rules_do_not_cover_goes_through_vmap_with_one_warning(build):
    net, (x, y) = seeded(build), batch(8)
    engine = GradNorm(net)
    with pytest.warns(UserWarning, match="vmap"):
        found = engine(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = engine(x, y)
    torch.testing.assert_close(found, loop(net, x, y), rtol=1e-10, atol=0)
    assert torch.equal(found, again) and engine.fallback


class Overwritten(Shared):
    def forward(self, x):
        hidden = x * 2
        out = self.conv(hidden)
        hidden.zero_()
        return self.head(F.avg_pool2d(out, 2).flatten(1))


def test_an_overwritten_input_is_an_error_also_for_a_frozen_teacher():
    net, (x, y) = seeded(Overwritten).requires_grad_(False), batch(8)
    with pytest.raises(RuntimeError, match="overwritten"):
        GradNorm(net)(x, y)


def test_training_mode_is_refused():
    net, (x, y) = seeded(NETS["convnet, batch norm"][0]), batch(16)
    engine = GradNorm(net)
    net.train()
    with pytest.raises(ValueError, match="training mode"):
        engine(x, y)
    net.eval()
    assert engine(x, y).isfinite().all()


def test_a_failed_pass_leaves_the_engine_usable():
    net, (x, y) = seeded(NETS["convnet, batch norm"][0]), batch(16)
    engine = GradNorm(net)
    with pytest.raises(RuntimeError):
        engine(x[:, :2], y)
    torch.testing.assert_close(engine(x, y), loop(net, x, y), rtol=1e-10, atol=0)
