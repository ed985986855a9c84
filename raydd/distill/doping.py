"""Doping, the choice: which originals are added to a distilled set (dsco.md, section 5, steps 5 and the budget).

Pure: tables of keys, labels and scores in, keys out. As released: the images of lowest clarity, from one list over all
classes (`global`) or class by class (`class`), after skipping the first `start` (per class), which guard against
outliers and wrong labels. Ties are broken by key.

Ours: scores that are not finite are dropped and counted; with `class`, a class with too few images gives all it has
behind its skipped ones, and what is missing comes from the others in the global order; a fraction of the source is
shared out by largest remainder of f * N_c - K, floored at 0 and scaled to the budget; `highest` takes the other end.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from raydd.errors import UserError

Order = Literal["lowest", "highest"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The chosen images by label, each class in the order of choice, with their scores.

    `dropped`: images whose score is not finite; `filled`: images taken from other classes for short ones.
    """

    keys: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    dropped: int
    filled: int

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(keys) for keys in self.keys)


def select(
    keys: Sequence[str],
    labels: Sequence[int],
    scores: Sequence[float],
    quotas: Sequence[int],
    *,
    scope: Literal["class", "global"],
    start: int = 0,
    order: Order = "lowest",
    leave_out: Collection[str] = (),
) -> Selection:
    """Choose sum(quotas) images: `quotas[c]` of class c, or as many of one list over all classes (`global`).

    keys, labels and scores describe all originals [N] in any order; `leave_out` are keys that must not be chosen.
    Raises `UserError` when there are too few images.
    """
    score = np.asarray(scores, np.float64)
    label = np.asarray(labels, np.int64).tolist()
    finite, left_out = np.isfinite(score), set(leave_out)
    free = [i for i in np.flatnonzero(finite).tolist() if keys[i] not in left_out]
    sign = -1.0 if order == "highest" else 1.0
    free.sort(key=lambda i: (sign * score[i], keys[i]))
    if scope == "class":
        chosen, spare = _by_class(free, label, quotas, start)
    else:
        skipped, total = start * len(quotas), sum(quotas)
        chosen, spare = free[skipped : skipped + total], []
    _check(sum(quotas), len(chosen) + len(spare), start)
    rows = _group(chosen + spare, label, len(quotas))
    return Selection(
        keys=tuple(tuple(keys[i] for i in own) for own in rows),
        scores=tuple(tuple(float(score[i]) for i in own) for own in rows),
        dropped=int((~finite).sum()),
        filled=len(spare),
    )


def check_budget(quotas: Sequence[int], sources: Sequence[int], start: int) -> None:
    """Raise `UserError` at once if the source, of `sources` images per class, is too small, scored or not."""
    _check(sum(quotas), max(0, sum(sources) - start * len(sources)), start)


def _check(wanted: int, available: int, start: int) -> None:
    if available < wanted:
        behind = f" behind the first {start} per class" if start else ""
        raise UserError(
            f"{wanted} originals are to be added but only {available} can be chosen from{behind}: "
            f"use a lower --per-class or --fraction{', or a lower --start' if start else ''}"
        )


def _by_class(free: list[int], label: list[int], quotas: Sequence[int], start: int) -> tuple[list[int], list[int]]:
    """Rows of each class's own choice, and those that stand in for classes that are too small."""
    chosen, left = [], set()
    for own, quota in zip(_group(free, label, len(quotas)), quotas):
        chosen += own[start : start + quota]
        left.update(own[start + quota :])
    return chosen, [i for i in free if i in left][: sum(quotas) - len(chosen)]


def _group(rows: list[int], label: list[int], num_classes: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(num_classes)]
    for i in rows:
        groups[label[i]].append(i)
    return groups


def equal_quotas(per_class: int, num_classes: int) -> list[int]:
    """`per_class` images of every class. Raises `UserError` below 1."""
    if per_class < 1:
        raise UserError(f"--per-class {per_class}: must be at least 1 original per class")
    return [per_class] * num_classes


def fraction_quotas(fraction: float, sources: Sequence[int], distilled: Sequence[int]) -> list[int]:
    """Originals per class that bring a set to `fraction` of its source: their sum is round(f * sum(N_c)) - sum(K_c).

    `sources` are the counts N_c of the source, `distilled` those K_c of the set. Raises `UserError` for a fraction
    outside (0, 1], or one that the set already exceeds.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction}: must lie above 0 and not above 1, e.g. 0.5 for half of the source")
    exact = Fraction(str(float(fraction)))
    whole, have = sum(sources), sum(distilled)
    budget = math.floor(exact * whole + Fraction(1, 2)) - have
    if budget < 0:
        raise UserError(
            f"--fraction {fraction}: {budget + have} of {whole} source images are fewer than the {have} that the set "
            f"holds: raise it above {have / whole:.3f}, or use --per-class"
        )
    wanted = [max(Fraction(0), exact * n - k) for n, k in zip(sources, distilled)]
    scale = budget / sum(wanted) if any(wanted) else Fraction(0)
    return _largest_remainder([scale * w for w in wanted], budget)


def _largest_remainder(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers of sum `total` next to `shares`; equal remainders go to the first classes."""
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda c: (counts[c] - shares[c], c))
    for c in order[: total - sum(counts)]:
        counts[c] += 1
    return counts
