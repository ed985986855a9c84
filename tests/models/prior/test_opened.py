"""Guidance and latents of an opened prior, on a network that is a formula; pipelines are in test_pipeline.py."""

import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.models.prior.autoencoder import Pixels
from raydd.models.prior.opened import OpenedPrior, uses_bf16
from raydd.models.prior.schedule import read_table


class Formula(nn.Module):
    """Predicts epsilon = x * label."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x, times, class_labels, return_dict):
        return (x * class_labels.view(-1, 1, 1, 1).to(x.dtype),)


def opened(**changes):
    clip = changes.pop("clip_sample", False)
    table = read_table({"beta_schedule": "linear", "clip_sample": clip}, pixels=True)
    options = {"latent_size": 4, "labels": [5, 7], "null": 2, "num_classes": 9} | changes
    return OpenedPrior(Formula(), Pixels(3), table, **options)


def test_guidance_mixes_the_two_passes():
    prior, x = opened(), torch.randn(2, 3, 4, 4)
    schedule = prior.schedule(10)
    out = prior.denoise(x, schedule, 3, torch.tensor([0, 1]), 3.0)
    factor = torch.tensor([2 + 3 * (5 - 2), 2 + 3 * (7 - 2)]).view(2, 1, 1, 1)
    assert torch.allclose(out.noise, x * factor, rtol=1e-5)
    alpha, sigma = schedule.level(3)
    assert torch.allclose(alpha * out.clean + sigma * out.noise, x, atol=1e-4)
    assert torch.allclose(
        prior.denoise(x, schedule, 3, torch.tensor([1, 0])).noise, x * torch.tensor([7, 5]).view(2, 1, 1, 1)
    )


def test_no_null_label_no_guidance():
    prior = opened(null=None)
    assert not prior.guidable
    with pytest.raises(UserError, match=r"guidance 1.5 of a prior that is without a null label"):
        prior.denoise(torch.zeros(1, 3, 4, 4), prior.schedule(3), 1, torch.tensor([0]), 1.5)


def test_clipping_can_be_left_out():
    prior, x = opened(clip_sample=True), 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule, labels = prior.schedule(10), torch.tensor([0, 1])
    clipped, raw = (prior.denoise(x, schedule, 5, labels, clip=clip) for clip in (True, False))
    assert clipped.clean.abs().max() == 1 < raw.clean.abs().max()
    assert torch.equal(raw.clean, opened(clip_sample=False).denoise(x, schedule, 5, labels).clean)
    assert torch.equal(clipped.clean, prior.denoise(x, schedule, 5, labels).clean)
    alpha, sigma = schedule.level(5)
    for out in (clipped, raw):
        assert torch.allclose(alpha * out.clean + sigma * out.noise, x, atol=1e-4)


def test_double_precision_stays():
    prior = opened()
    prior.net.double()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = prior.denoise(x, prior.schedule(10), 5, torch.tensor([0, 1]), 3.0)
    factor = torch.tensor([11.0, 17.0], dtype=torch.float64).view(2, 1, 1, 1)
    assert out.noise.dtype == out.clean.dtype == torch.float64 and (out.noise - factor * x).abs().max() < 1e-13
    assert prior.denoise(x.half(), prior.schedule(10), 5, torch.tensor([0, 1])).noise.dtype == torch.float32


def test_a_spacing_may_be_asked_for():
    prior = opened(spacing="trailing")
    assert prior.schedule(4).timesteps.tolist() == [249, 499, 749, 999]
    assert prior.schedule(4, "leading").timesteps.tolist() == [0, 250, 500, 750]


def test_paint_is_decode_without_rounding():
    prior = opened()
    latents = 1.5 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = prior.paint(latents)
    assert images.requires_grad and images.abs().max() > 1
    assert torch.equal(((images + 1) * 127.5).round().clamp(0, 255).byte(), prior.decode(latents))


def test_anchors_are_the_spaces():
    class Rounding(Pixels):
        def quantize(self, latents):
            return latents.round()

    prior, latents = opened(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.anchor(latents), latents)
    prior.space = Rounding(3)
    assert torch.equal(prior.anchor(latents), latents.round())


def test_the_posterior_is_drawn_with_the_given_noise():
    class Spread(Pixels):
        def moments(self, images):
            mean, _ = super().moments(images)
            return mean, torch.full_like(mean, 0.5)

    prior = opened()
    prior.space = Spread(3)
    images, noise = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8), torch.randn(2, 3, 4, 4)
    assert torch.allclose(prior.encode(images, noise), 0.5 * noise - 0.6, atol=1e-6)
    assert torch.allclose(prior.encode(images), torch.tensor(-0.6))


def test_draws_come_from_the_generator():
    a, b = (opened().draw(2, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.shape == (2, 3, 4, 4) and torch.equal(a, b)


def test_bf16_is_for_cuda_by_itself():
    assert not uses_bf16("auto", "cpu") and uses_bf16("bf16", "cpu") and not uses_bf16("fp32", "cuda")
    with pytest.raises(UserError, match="unknown precision 'fp16'"):
        uses_bf16("fp16", "cpu")
