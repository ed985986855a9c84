"""Which crops make the set: one per image, then the chosen ranks of the class (InfoUtil, steps 6 and 7).

RDED is the same rule with the lowest cross-entropy: lowest crop of each image, then the images in ascending order.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

from raydd.distill.infoutil.config import SelectConfig


@dataclasses.dataclass(frozen=True)
class Crop:
    """One distinct crop of one source image: pixel box, score, whether the teacher is right, clean pick or noisy."""

    key: str
    box: tuple[int, int, int, int]
    score: float
    correct: bool = True
    clean: bool = False


def rank(crops: Sequence[Crop], direction: str) -> list[Crop]:
    """Crops by (score, key, box): ascending for `bottom`, else descending."""
    sign = 1 if direction == "bottom" else -1
    return sorted(crops, key=lambda crop: (sign * crop.score, crop.key, crop.box))


def take(crops: Sequence[Crop], count: int, direction: str) -> list[Crop]:
    """The first `count` of the ranking, or for `median` the `count` in its middle; in rank order."""
    ordered = rank(crops, direction)
    first = max(0, (len(ordered) - count) // 2) if direction == "median" else 0
    return ordered[first : first + count]


def select(crops: Sequence[Crop], count: int, config: SelectConfig) -> list[Crop]:
    """The `count` crops of a class that make its distilled images, in rank order.

    `crops` holds every distinct crop of every candidate. Raises `ValueError` if there are not `count` of them under
    the rule of `per_image`.
    """
    pool = compete(crops, config)
    if config.require_correct:
        right = [crop for crop in pool if crop.correct]
        if len(right) < count:
            wrong = rank([crop for crop in pool if not crop.correct], config.direction)
            return rank(right, config.direction) + wrong[: count - len(right)]
        pool = right
    if len(pool) < count:
        raise ValueError(f"{len(pool)} crops compete for {count} places")
    return take(pool, count, config.direction)


def compete(crops: Sequence[Crop], config: SelectConfig) -> list[Crop]:
    """The crops that compete: one per image (`best`, `clean`), or up to `max_per_image` (`pooled`)."""
    by_image = defaultdict(list)
    for crop in crops:
        by_image[crop.key].append(crop)
    if config.per_image == "clean":
        return [crop for group in by_image.values() for crop in group if crop.clean]
    if config.per_image == "best":
        return [take(_right_first(group, config), 1, config.direction)[0] for group in by_image.values()]
    seen, pool = Counter(), []
    for crop in rank(crops, config.direction):
        seen[crop.key] += 1
        if seen[crop.key] <= config.max_per_image:
            pool.append(crop)
    return pool


def _right_first(group: list[Crop], config: SelectConfig) -> list[Crop]:
    """Under `require_correct` an image is represented by a crop that the teacher gets right, if it has one."""
    right = [crop for crop in group if crop.correct]
    return right if config.require_correct and right else group
