"""LD3M's generator: from learnable latents and conditions through a short deterministic sampling chain to images.

One image per row: x = alpha Z + sigma eps at the noisiest level, then for every step (arXiv 2403.03881, section 3;
the form of the authors' code)

    clean, noise <- denoiser(x, c)            guidance inside
    clean <- (1 - w) clean + w A              A: the latent itself (at the nearest codes), w falls from 1 to 0
    x     <- alpha' clean + sigma' noise      DDIM (arXiv 2010.02502, eq. 12) with eta 0

and pixels = decode(x), clamped and resized. The skip carries the gradient of Z around the denoiser, where the chain
alone would starve it. The denoiser's weights are frozen; each of its calls, and the decoder, may be a checkpoint, so
that memory does not grow with the number of steps.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.models.prior.base import Differentiable, Schedule

Levels = tuple[float, float]


class Generator(Protocol):
    """Learnables to images: latents Z fp32 [n, *latent_shape], conditions c fp32 [n, ...] or None, noise like Z."""

    latent_shape: tuple[int, int, int]
    image_size: int
    device: str

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images uint8 [n,3,S,S] at `image_size`, without noise."""
        ...

    def conditions(self, labels: Tensor) -> Tensor | None:
        """Where the conditions of images of these labels start."""
        ...

    def pixels(self, z: Tensor, c: Tensor | None, noise: Tensor) -> Tensor:
        """Pixels fp32 [n,3,size,size] in [0, 1], differentiable in z and c."""
        ...


class PixelGenerator:
    """No prior: Z is the image in [-1, 1], which is the parameterization of DC, DM and MTT.

    With `clamp` off pixels leave [0, 1] while they are learned, and are cut off where they are written.
    """

    def __init__(self, size: int, device: str = "cpu", clamp: bool = True):
        self.latent_shape, self.image_size, self.device, self.clamp = (3, size, size), size, device, clamp

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device).float() / 127.5 - 1

    def conditions(self, labels: Tensor) -> None:
        return None

    def pixels(self, z: Tensor, c: Tensor | None, noise: Tensor) -> Tensor:
        return to_pixels(z) if self.clamp else (z + 1) / 2


class PriorGenerator:
    """The chain over a prior; `size` is that of the matcher, at most the prior's own.

    The last `keep_steps` steps of the chain keep their activations; the other calls are computed again when gradients
    are taken. That changes time and memory, never a bit of the result.
    """

    def __init__(self, prior: Differentiable, config: Ld3mConfig, size: int, keep_steps: int = 0):
        self.prior, self.config, self.size, self.keep_steps = prior, config, size, keep_steps
        self.latent_shape, self.image_size, self.device = prior.latent_shape, prior.image_size, prior.device
        self.guidance = settled_guidance(prior, config)
        self.schedule = prior.schedule(config.steps, "leading") if config.steps else None

    def encode(self, images: Tensor) -> Tensor:
        return self.prior.encode(images)

    def conditions(self, labels: Tensor) -> Tensor | None:
        return self.prior.conditions(labels) if self.config.steps else None

    def pixels(self, z: Tensor, c: Tensor | None, noise: Tensor) -> Tensor:
        pixels = to_pixels(self.decode(self.chain(z, c, noise)))
        if self.size == self.image_size:
            return pixels
        # Bilinear: bicubic would leave [0, 1] again.
        return F.interpolate(pixels, size=(self.size,) * 2, mode="bilinear", antialias=True, align_corners=False)

    def chain(self, z: Tensor, c: Tensor | None, noise: Tensor) -> Tensor:
        """Clean latents like z. `c` of an unconditional prior is None."""
        anchor = self.prior.anchor(z)
        if self.schedule is None:
            return anchor
        levels = level_pairs(self.schedule)
        alpha, sigma = levels[0][0]
        x = start = alpha * z + sigma * noise
        for k, (_, (alpha, sigma)) in enumerate(levels):
            clean, direction = self._predict(x, c, k)
            w = 0.0 if self.config.anchor == "none" else skip_weight(k, len(levels), self.config.settled_weights)
            if self.config.anchor == "x0" and w:
                # With w = 1 the prediction is left out rather than multiplied by 0: it may not be finite.
                clean = anchor if w == 1 else (1 - w) * clean + w * anchor
            x = alpha * clean + sigma * direction
            if self.config.anchor == "mean":
                x = (1 - w) * x + w * start
        return x

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], `decode_chunk` at a time."""
        parts = latents.split(self.config.decode_chunk or len(latents))
        return torch.cat([again(self.prior.paint, part) for part in parts])

    def _predict(self, x: Tensor, c: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        call = functools.partial(self._denoise, k)
        return call(x, c) if k >= self.config.steps - self.keep_steps else again(call, x, c)

    def _denoise(self, k: int, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        i = self.config.steps - 1 - k
        prediction = self.prior.denoise(x, self.schedule, i, c, self.guidance, clip=False)
        return prediction.clean, prediction.noise


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as pixels in [0, 1]; what is clamped gets no gradient."""
    return ((images + 1) / 2).clamp(0, 1)


def settled_guidance(prior: Differentiable, config: Ld3mConfig) -> float:
    """The guidance scale: as given, else 3 where the prior has a null label."""
    if config.guidance is not None:
        return config.guidance
    return 3.0 if prior.guidable else 1.0


def level_pairs(schedule: Schedule) -> list[tuple[Levels, Levels]]:
    """((alpha, sigma) entering, (alpha, sigma) leaving) of every step, noisiest first; the last leaves at `final`."""
    levels = [schedule.level(i) for i in reversed(range(len(schedule)))] + [schedule.final]
    return list(itertools.pairwise(levels))


def skip_weight(k: int, steps: int, weights: str) -> float:
    """Share of the start at step k of `steps`, k = 0 first: exactly 1 to exactly 0, or 1 to 1/steps."""
    left = steps - 1 - k
    if weights == "t_over_T":
        return (left + 1) / steps
    return left / (steps - 1) if steps > 1 else 0.0


def again(call: Callable[..., Any], *inputs: Tensor | None) -> Any:
    """Call with its activations dropped, to be computed again when gradients are taken."""
    if not torch.is_grad_enabled():
        return call(*inputs)
    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
