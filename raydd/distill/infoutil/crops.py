"""Candidate crops of an image: windows picked from noisy Shapley heat, random windows, RDED's crops, the whole image.

A window covers pool x pool patches of a grid x grid image and never leaves it. Noise and boxes are drawn per image from
(seed, class, key), so that batches and workers cannot change them. `CropConfig.crops` picks per image; the last one is
the clean argmax (InfoUtil, step 4: heat + e_r, e_r ~ N(0, (alpha * std(heat))^2) per cell).
"""

import math
from collections.abc import Sequence

import numpy as np

from raydd.distill.infoutil.config import CropConfig
from raydd.keyed import numpy_rng

# RDED's crop: area 8 to 100 % of the image (one tile per image) or 25 to 100 % (mosaics), aspect 3/4 to 4/3.
ASPECT = (3 / 4, 4 / 3)


def window_boxes(size: int, grid: int, pool: int) -> np.ndarray:
    """Boxes int32 [n_win,4] (left, top, right, bottom) of all windows in row-major order."""
    patch, side = size // grid, pool * size // grid
    starts = range(0, (grid - pool + 1) * patch, patch)
    return np.array([(x, y, x + side, y + side) for y in starts for x in starts], np.int32)


def pick_windows(heat: np.ndarray, class_name: str, key: str, config: CropConfig, seed: int) -> np.ndarray:
    """Window indices int64 [crops] of one image from its heat [n_win]; the last one is the clean argmax.

    Ties go to the first window. alpha 0 picks the clean window alone.
    """
    heat = np.asarray(heat, np.float64)
    clean = int(heat.argmax())
    if config.alpha == 0 or config.crops == 1:
        return np.array([clean])
    noise = numpy_rng("heat", seed, class_name, key).standard_normal((config.crops - 1, heat.size))
    noisy = (heat + config.alpha * heat.std() * noise).argmax(axis=1)
    return np.append(noisy, clean)


def random_window(count: int, class_name: str, key: str, config: CropConfig, seed: int) -> np.ndarray:
    """Uniformly random window indices int64 [crops] out of `count`."""
    return numpy_rng("window", seed, class_name, key).integers(0, count, config.crops)


def random_resized_boxes(size: int, factor: int, class_name: str, key: str, crops: int, seed: int) -> np.ndarray:
    """RDED's random resized crops of a size x size image: boxes int32 [crops,4].

    As torchvision draws them: area share uniform in [low, 1], log-uniform aspect, ten tries, else the whole image.
    """
    low = 0.08 if factor == 1 else 1 / factor**2
    rng = numpy_rng("resized", seed, class_name, key)
    return np.array([_random_resized(size, low, rng) for _ in range(crops)], np.int32)


def _random_resized(size: int, low: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = size * size * rng.uniform(low, 1.0)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
            return left, top, left + width, top + height
    return 0, 0, size, size


def crop_boxes(
    config: CropConfig, size: int, factor: int, class_name: str, key: str, seed: int, heat: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """All crops of one image: ids int64 [R] and the boxes int32 [n,4] that ids index; equal ids are the same crop."""
    if config.crop_from == "full":
        return np.array([0]), np.array([[0, 0, size, size]], np.int32)
    if config.crop_from == "random_resized":
        boxes = random_resized_boxes(size, factor, class_name, key, config.crops, seed)
        return np.arange(config.crops), boxes
    boxes = window_boxes(size, config.grid, config.window)
    if config.crop_from == "random_window":
        return random_window(len(boxes), class_name, key, config, seed), boxes
    return pick_windows(np.asarray(heat), class_name, key, config, seed), boxes
