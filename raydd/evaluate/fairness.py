"""Scores that are fair across label and augmentation regimes, and statistics over seeds (evaluation.md sections 1, 6).

LRS and ARS as publicly described by DD-Ranking (arXiv 2505.13300), from accuracies as fractions in [0, 1]: its released
code feeds percent into the exponential, which saturates it, so ours are to be labeled "DD-Ranking style".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def hlr(full_hard: float, set_hard: float) -> float:
    """Hard-label recovery gap: A(real, hard) - A(set, hard)."""
    _fractions(full_hard, set_hard)
    return full_hard - set_hard


def ior(set_own: float, random_own: float) -> float:
    """Improvement over random: A(set, own recipe) - A(random, same recipe)."""
    _fractions(set_own, random_own)
    return set_own - random_own


def lrs(hard_gap: float, improvement: float, weight: float = 0.5) -> float:
    """Label-robust score in [0, 1] from HLR and IOR: alpha = w * IOR - (1 - w) * HLR, squashed."""
    return squash(weight * improvement - (1 - weight) * hard_gap)


def ars(augmented: tuple[float, float], plain: tuple[float, float], weight: float = 0.5) -> float:
    """Augmentation-robust score in [0, 1] from (set, random) accuracies with and without augmentation."""
    return squash(weight * ior(*augmented) + (1 - weight) * ior(*plain))


def squash(alpha: float) -> float:
    """(e^alpha - e^-1) / (e - e^-1): 0 at -1, 1 at 1."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def gap_closed(value: float, random: float, full: float) -> float:
    """Share of the gap between random and full data that is closed; nan where full data is not better than random."""
    return (value - random) / (full - random) if full > random else math.nan


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (sample; nan for one) and number."""

    mean: float
    std: float
    n: int


def summarize(accuracies: Mapping[tuple[int, int], float]) -> Summary:
    """Summary of accuracies by (distillation seed, student seed): the deviation is over distillation seeds, of the
    means over students; with a single distillation seed it is over student seeds. Raises `ValueError` for none."""
    if not accuracies:
        raise ValueError("no accuracies")
    groups: dict[int, list[float]] = {}
    for (distillation, _), value in accuracies.items():
        groups.setdefault(distillation, []).append(value)
    values = [float(np.mean(group)) for group in groups.values()]
    if len(values) == 1:
        values = next(iter(groups.values()))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(float(np.mean(values)), std, len(values))


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences, its 95 % interval (t distribution), and the number of pairs."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether the interval lies below 0."""
        return self.high < 0


def paired_difference(ours: Mapping, theirs: Mapping, level: float = 0.95) -> Paired:
    """Difference ours - theirs over the seeds that both have; the interval is infinite for one pair.

    Keys (d, s) of distillation and student seed are first averaged over students, so that the interval speaks of new
    distillations; with one distillation seed the pairs are the students. Raises `ValueError` without a common seed.
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError("no common seeds: paired differences need equal seeds on both sides")
    differences = _by_distillation({key: ours[key] - theirs[key] for key in common})
    mean, n = float(np.mean(differences)), len(differences)
    if n == 1:
        return Paired(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return Paired(mean, mean - half, mean + half, n)


def sampling_error(accuracy: float, count: int) -> float:
    """Standard error of one accuracy measured on `count` images: sqrt(p (1 - p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / count)


def _by_distillation(values: Mapping) -> Sequence[float]:
    groups: dict[object, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(key[0] if isinstance(key, tuple) else key, []).append(value)
    return next(iter(groups.values())) if len(groups) == 1 else [float(np.mean(g)) for g in groups.values()]


def _fractions(*accuracies: float) -> None:
    if not all(0 <= a <= 1 for a in accuracies):
        raise ValueError(f"accuracies {accuracies}: expected fractions in [0, 1], not percent")
