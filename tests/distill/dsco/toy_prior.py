"""A prior that needs no training: classes are stationary Gaussian fields, of which the posterior mean is known exactly.

Class = mean m0 (half a draw) + Gaussian field with power P ~ 1/f^2 (f=0 set to 1/side) and unit mean pixel variance.
`narrow` scales the power that the prior believes in: 0.5 imitates how guidance narrows a distribution, 1 is honest.
"""

import torch
from torch import Generator, Tensor

from raydd.keyed import torch_rng
from raydd.models.prior.base import Prediction, Schedule


class GaussianPrior:
    """`Prior` over classes "class0", "class1" ... in fp64 inside, fp32 outside unless `dtype` says otherwise."""

    guidable, device, classes = False, "cpu", None

    def __init__(self, shape=(1, 8, 8), num_classes=2, narrow=0.5, flow=False, dtype=torch.float32):
        self.latent_shape, self.image_size, self.num_classes = shape, shape[1], num_classes
        self.flow, self.dtype, self.hash = flow, dtype, f"gaussian-{shape}-{narrow}-{flow}"
        side = shape[1]
        frequency = torch.fft.fftfreq(side, dtype=torch.float64)
        f = torch.sqrt(frequency[:, None] ** 2 + frequency[None] ** 2)
        f[0, 0] = 1 / side
        self.power = f**-2 / (f**-2).mean()
        self.believed = self.power * narrow
        means = [0.5 * self.field(1, torch_rng("toy mean", c))[0] for c in range(num_classes or 1)]
        self.means = torch.stack(means)

    def field(self, count: int, rng: Generator) -> Tensor:
        """float64 [count, Ch, H, W] of zero mean."""
        white = torch.randn(count, *self.latent_shape, generator=rng, dtype=torch.float64)
        return torch.fft.ifft2(torch.fft.fft2(white) * self.power.sqrt()).real

    def reals(self, label: int, count: int) -> Tensor:
        """`count` keyed draws of a class, of the prior's dtype."""
        return (self.means[label] + self.field(count, torch_rng("toy reals", label))).to(self.dtype)

    def schedule(self, steps: int) -> Schedule:
        if self.flow:
            sigmas = torch.linspace(1 / steps, 1, steps, dtype=torch.float64)
            return Schedule(sigmas * 1000, 1 - sigmas, sigmas)
        timesteps = torch.linspace(0, 999, steps, dtype=torch.float64).round().long()
        kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[timesteps]
        return Schedule(timesteps, kept.sqrt(), (1 - kept).sqrt())

    def denoise(
        self, x: Tensor, schedule: Schedule, i: int, labels: Tensor | None, guidance: float = 1.0
    ) -> Prediction:
        alpha, sigma = schedule.level(i)
        mean = self.means[labels] if labels is not None else self.means.mean(0)
        gain = alpha * self.believed / (alpha**2 * self.believed + sigma**2)
        offset = x.double() - alpha * mean
        clean = mean + torch.fft.ifft2(torch.fft.fft2(offset) * gain).real
        return Prediction(clean.to(self.dtype), ((x.double() - alpha * clean) / sigma).to(self.dtype))

    def draw(self, count: int, generator: Generator) -> Tensor:
        return torch.randn(count, *self.latent_shape, generator=generator).to(self.dtype)
