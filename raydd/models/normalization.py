"""Pixel normalization: the one place where uint8 images become network inputs, and back.

A set's mean and standard deviation travel with every teacher and every distilled set; nothing guesses them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations")
        if min(self.std) <= 0:
            raise ValueError(f"standard deviations must be positive, not {self.std}")

    def apply(self, images: Tensor) -> Tensor:
        """Normalize uint8 [B, C, H, W], or float in [0, 1], to float32 of the same shape, device and memory format."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean, std = self._columns(images.device)
        return (pixels - mean) / std

    def invert(self, normalized: Tensor) -> Tensor:
        """float [B, C, H, W] back to float32 pixels; not clamped, so that it stays the exact inverse of `apply`."""
        mean, std = self._columns(normalized.device)
        return normalized.float() * std + mean

    def to_uint8(self, normalized: Tensor) -> Tensor:
        """float [B, C, H, W] back to uint8 pixels, clamped and rounded to the nearest."""
        return (self.invert(normalized) * 255).round().clamp(0, 255).to(torch.uint8)

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def measure(images: Tensor) -> Normalization:
    """Mean and standard deviation over all pixels of uint8 [N, C, H, W], exact (from histograms), rounded to 6 digits.

    A constant channel gets the standard deviation 1/255. Raises `ValueError` for other dtypes or no images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"expected uint8 [N, C, H, W] with N > 0, got {images.dtype} {list(images.shape)}")
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # bincount needs int64, eight times the memory of the images, hence the chunks.
        counts = sum(torch.bincount(part.reshape(-1).long(), minlength=256) for part in images[:, channel].split(4096))
        share = counts.cpu().double() / counts.sum().item()
        mean = (share * values).sum()
        means.append(round(mean.item(), 6))
        stds.append(round(max((share * (values - mean) ** 2).sum().sqrt().item(), 1 / 255), 6))
    return Normalization(tuple(means), tuple(stds))
