"""CutMix (arXiv 1905.04899) with one box and one permutation per batch, as RDED, IDC and FKD use it.

The box has the area fraction 1 - lambda, lambda ~ Beta(alpha, alpha), and a uniform center; what sticks out is cut off,
and the label's share is computed from what remains.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Pixels [top, bottom) x [left, right) of a view of side `size`."""

    top: int
    left: int
    bottom: int
    right: int
    size: int

    @property
    def area(self) -> float:
        """Share of the view that the box covers, in [0, 1]."""
        return (self.bottom - self.top) * (self.right - self.left) / self.size**2


def draw_cutmix(
    rng: np.random.Generator, count: int, size: int, probability: float, alpha: float
) -> tuple[np.ndarray, Box] | None:
    """Partner of each of `count` rows (int64 permutation) and the box; None with probability 1 - `probability`."""
    coin, u, y, x = rng.random(4)
    if coin >= probability:
        return None
    keep = u if alpha == 1 else float(betaincinv(alpha, alpha, u))
    side = int(size * np.sqrt(1 - keep))
    y, x = int(y * size), int(x * size)
    low, high = -(side // 2), side // 2
    top, bottom = np.clip([y + low, y + high], 0, size)
    left, right = np.clip([x + low, x + high], 0, size)
    return np.argsort(rng.random(count), kind="stable"), Box(int(top), int(left), int(bottom), int(right), size)


def paste(images: Tensor, partners: Tensor, box: Box) -> Tensor:
    """Images with the partners' pixels inside the box; [B, C, S, S]."""
    mixed = images.clone()
    inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
    mixed[inside] = partners[inside]
    return mixed
