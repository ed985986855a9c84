"""Color jitter and PCA lighting (the `hard` protocol of IDC and Minimax) as one affine map per image.

Brightness b: b x. Saturation s: s x + (1-s) g(x), g the grey image. Contrast c: c x + (1-c) m, m the mean of g.
Saturation leaves g unchanged and maps grey onto grey, and m scales with b, so without clamping the three commute: every
order gives b c (s x + (1-s) g(x)) + (1-c) b m. The random order of the original code therefore needs no drawing.
Lighting (AlexNet) adds V (l * a), a ~ N(0, std^2), with ImageNet's color eigenvectors V and eigenvalues l.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COLUMNS = 6
GREY = (0.299, 0.587, 0.114)
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class Color:
    """Color parameters of B images: `brightness`, `contrast`, `saturation` float32 [B], `light` float32 [B, 3]."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    light: Tensor


def draw_color(uniform: np.ndarray, jitter: tuple[float, float, float], lighting: float) -> Color:
    """Factors uniform in [1-j, 1+j] for `jitter` = (brightness, contrast, saturation), and lighting of deviation
    `lighting`, from uniforms [B, 6]."""
    factors = 1 + (2 * uniform[:, :3] - 1) * np.asarray(jitter)
    # Uniforms may be exactly 0, whose normal quantile is infinite.
    normal = torch.special.ndtri(torch.from_numpy(np.clip(uniform[:, 3:], 2**-53, None)))
    scaled = lighting * normal * torch.tensor(EIGENVALUES, dtype=torch.float64)
    light = scaled @ torch.tensor(EIGENVECTORS, dtype=torch.float64).T
    brightness, contrast, saturation = torch.from_numpy(factors).float().unbind(1)
    return Color(brightness, contrast, saturation, light.float())


def apply_color(images: Tensor, color: Color) -> Tensor:
    """Jitter and light images float [B, 3, H, W] in [0, 1]; the result is not clamped."""
    b, c, s, light = (
        v.to(images.device, images.dtype) for v in (color.brightness, color.contrast, color.saturation, color.light)
    )
    grey = images.new_tensor(GREY)
    mean = images.mean(dim=(2, 3)) @ grey
    saturate = s[:, None, None] * torch.eye(3, device=images.device, dtype=images.dtype)
    saturate = saturate + (1 - s)[:, None, None] * grey.expand(3, 3)
    offset = ((1 - c) * b * mean)[:, None] + light
    mixed = torch.baddbmm(offset[:, :, None], (b * c)[:, None, None] * saturate, images.flatten(2))
    return mixed.view_as(images)
