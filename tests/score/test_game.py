"""Masked forwards against a loop with pixel masks; no effect of batch, slicing or padding; games and baselines."""

import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.score.game import fold_batchnorm, masked_values


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def images(count: int = 6, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % 5


def coalitions(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 16, generator=torch.Generator().manual_seed(2)) < 0.5


@torch.no_grad()
def reference(net, x, y, masks, base):
    """One image and one coalition at a time, masks enlarged to pixels: [B, K]."""
    rows = []
    for i in range(len(x)):
        own = masks if masks.ndim == 2 else masks[i]
        pixels = own.view(-1, 4, 4).repeat_interleave(x.shape[2] // 4, 1).repeat_interleave(x.shape[3] // 4, 2)
        rows.append(torch.stack([net(torch.where(m, x[i], base[i])[None])[0] for m in pixels]))
    return torch.stack(rows)


@pytest.mark.parametrize("per_image", [False, True])
def test_values_are_those_of_a_plain_loop(per_image):
    net, (x, y) = small_net(), images()
    masks = coalitions(6, 11) if per_image else coalitions(11)
    logits = reference(net, x, y, masks, torch.zeros_like(x))
    target = y[:, None, None].expand(6, 11, 1)
    expected = logits.gather(2, target)[..., 0]
    torch.testing.assert_close(masked_values(net, x, y, masks, grid=4, max_batch=16), expected)
    found = masked_values(net, x, y, masks, grid=4, game="probability")
    torch.testing.assert_close(found, logits.softmax(2).gather(2, target)[..., 0])
    others = logits.scatter(2, target, float("-inf")).amax(2)
    torch.testing.assert_close(masked_values(net, x, y, masks, grid=4, game="margin"), expected - others)


@pytest.mark.parametrize("baseline", ["image_mean", "blur"])
def test_other_baselines_fill_the_hidden_part(baseline):
    net, (x, y) = small_net(), images(size=16)
    masks = torch.tensor([[False] * 16, [True] * 16, [True] * 8 + [False] * 8])
    found = masked_values(net, x, y, masks, grid=4, baseline=baseline)
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-4
    if baseline == "image_mean":
        base = x.mean((2, 3), keepdim=True).expand_as(x)
        expected = reference(net, x, y, masks, base).gather(2, y[:, None, None].expand(6, 3, 1))[..., 0]
        torch.testing.assert_close(found, expected)


def test_blur_keeps_constant_images_and_smooths_others():
    from raydd.score.game import _baseline

    flat = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(_baseline(flat, "blur"), flat)
    x, _ = images(size=32)
    assert _baseline(x, "blur").std() < 0.3 * x.std()


def test_zero_baseline_is_exactly_zero_after_normalization():
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    net[0].register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    x, y = images(1)
    masked_values(net, x, y, torch.zeros(1, 16, dtype=torch.bool), grid=4, max_batch=1)
    assert torch.equal(seen[0], torch.zeros(1, 3, 8, 8))


def test_an_image_does_not_depend_on_its_batch():
    net, (x, y), masks = small_net(), images(), coalitions(11)
    together = masked_values(net, x, y, masks, grid=4, max_batch=8)
    alone = torch.cat([masked_values(net, x[i : i + 1], y[i : i + 1], masks, grid=4, max_batch=8) for i in range(6)])
    assert torch.equal(together, alone)
    assert torch.equal(together.flip(0), masked_values(net, x.flip(0), y.flip(0), masks, grid=4, max_batch=8))
    for rows in (1, 7, 200):
        torch.testing.assert_close(masked_values(net, x, y, masks, grid=4, max_batch=rows), together)


def test_every_forward_has_the_same_shape():
    shapes = []
    net = small_net()
    net[0].register_forward_hook(lambda _, inputs, out: shapes.append(tuple(inputs[0].shape)))
    masked_values(net, *images(), coalitions(11), grid=4, max_batch=32)
    assert shapes == [(32, 3, 8, 8)] * 3


def test_bf16_stays_close_and_restores_the_classifier():
    net, (x, y), masks = small_net(), images(), coalitions(11)
    exact = masked_values(net, x, y, masks, grid=4)
    rounded = masked_values(net, x, y, masks, grid=4, precision="bf16")
    assert 0 < (exact - rounded).abs().max() < 0.02 * exact.abs().max()
    assert "forward" not in vars(net[5])
    assert rounded.dtype == torch.float32


def test_folding_keeps_the_function_and_the_original():
    net, (x, _) = small_net(), images()
    folded = fold_batchnorm(net)
    torch.testing.assert_close(folded(x), net(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert isinstance(net[1], nn.BatchNorm2d)


def test_untraceable_networks_are_copied_unfolded():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_net()

        def forward(self, x):
            return self.body(x) if x.sum() < 1e9 else x

    net, (x, _) = Branching().eval(), images()
    copied = fold_batchnorm(net)
    assert copied is not net
    torch.testing.assert_close(copied(x), net(x))


def test_wrong_options_are_refused():
    net, (x, y), masks = small_net(), images(), coalitions(2)
    with pytest.raises(UserError, match="divides"):
        masked_values(net, x, y, masks[:, :9], grid=3)
    with pytest.raises(UserError, match="probability"):
        masked_values(net, x, y, masks, grid=4, game="probabilty")
    with pytest.raises(ValueError, match="eval"):
        masked_values(net.train(), x, y, masks, grid=4)
