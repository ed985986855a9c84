"""Differentiable Siamese augmentation (DSA, arXiv 2102.08259), used by LD3M's matching losses and two protocols.

Six groups, applied in this order: color, crop, cutout, flip, scale, rotate. `form="one"` applies a single group, drawn
for the whole batch; `form="all"` applies all six. Works on normalized images, so the zero fill is the mean color.
Parameters come first, from uniforms [B, 11]; with one row they are shared by the whole batch (Siamese), otherwise each
image has its own. Constants (paper): flip .5, brightness 1, saturation 2, contrast .5, crop .125, cutout .5, scale 1.2,
rotation 15 degrees.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
COLUMNS = 11


@dataclass(frozen=True)
class Dsa:
    """Parameters of DSA for B images, or for any number of images when B is 1.

    `uniform`: float64 [B, 11] in [0, 1): color 3, crop 2, cutout 2, flip 1, scale 2, rotate 1. `groups`: the groups to
    apply, always in the order of `GROUPS`.
    """

    uniform: np.ndarray
    groups: tuple[str, ...] = GROUPS

    def take(self, index: np.ndarray) -> "Dsa":
        """The parameters of some images (shared parameters stay shared)."""
        return self if len(self.uniform) == 1 else Dsa(self.uniform[index], self.groups)


def draw_dsa(rng: np.random.Generator, count: int = 1, form: str = "one") -> Dsa:
    """Parameters for `count` images (1: Siamese) in the given form, `one` or `all`."""
    return Dsa(groups=draw_groups(rng, form), uniform=rng.random((count, COLUMNS)))


def draw_groups(rng: np.random.Generator, form: str) -> tuple[str, ...]:
    """The groups of a step: one of the six, or all of them."""
    if form not in ("one", "all"):
        raise ValueError(f"form {form!r}: expected 'one' or 'all'")
    return GROUPS if form == "all" else (GROUPS[int(rng.random() * len(GROUPS))],)


def apply_dsa(images: Tensor, dsa: Dsa) -> Tensor:
    """Augment normalized images float [B, 3, S, S]; differentiable in the images."""
    uniform = torch.from_numpy(dsa.uniform).to(images.device, images.dtype)
    uniform = uniform.expand(len(images), COLUMNS)
    color, crop, cutout, flip, scale, rotate = uniform.split((3, 2, 2, 1, 2, 1), dim=1)
    operations = {
        "color": (_color, color),
        "crop": (_crop, crop),
        "cutout": (_cutout, cutout),
        "flip": (_flip, flip),
        "scale": (_scale, scale),
        "rotate": (_rotate, rotate),
    }
    for group in GROUPS:
        if group in dsa.groups:
            apply, u = operations[group]
            images = apply(images, u)
    return images


def _color(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (v[:, None, None, None] for v in u.unbind(1))
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (x - mean)


def _crop(x: Tensor, u: Tensor) -> Tensor:
    size = x.shape[-1]
    reach = int(size * 0.125 + 0.5)
    padded = F.pad(x, (reach,) * 4)
    # Uniforms just below 1 are 1 in single precision.
    start = (u * (2 * reach + 1)).long().clamp(max=2 * reach)
    pixels = torch.arange(size, device=x.device)
    rows, columns = start[:, :1] + pixels, start[:, 1:] + pixels
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    size = x.shape[-1]
    side = int(size * 0.5 + 0.5)
    start = (u * (size + 1 - side % 2)).long() - side // 2
    pixels = torch.arange(size, device=x.device)
    inside = (pixels >= start[:, :, None]) & (pixels < start[:, :, None] + side)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return x * (~hole).to(x.dtype)[:, None]


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where((u < 0.5)[:, :, None, None], x.flip(-1), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    factor = 1 / 1.2 + u * (1.2 - 1 / 1.2)
    zero = torch.zeros_like(factor[:, 0])
    return _affine(x, (factor[:, 0], zero, zero, factor[:, 1]))


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (2 * u[:, 0] - 1) * math.radians(15)
    return _affine(x, (angle.cos(), -angle.sin(), angle.sin(), angle.cos()))


def _affine(x: Tensor, entries: tuple[Tensor, ...]) -> Tensor:
    a, b, c, d = entries
    zero = torch.zeros_like(a)
    theta = torch.stack([a, b, zero, c, d, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
