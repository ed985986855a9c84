"""The keyed sample of candidates is stable and even, and impossible requests name the class and a number that works."""

import numpy as np
import pytest

from raydd.distill.candidates import candidate_count, candidates, check_counts
from raydd.errors import UserError

KEYS = [f"{i}.png" for i in range(50)]


def test_sample_ignores_the_listing_and_grows_by_appending():
    chosen = candidates(KEYS, "cat", 10, 0)
    assert candidates(KEYS[::-1], "cat", 10, 0) == chosen
    assert candidates(KEYS, "cat", 20, 0)[:10] == chosen
    assert set(candidates(KEYS, "cat", None, 0)) == set(KEYS)
    assert set(candidates(KEYS, "cat", 99, 0)) == set(KEYS)


def test_seed_and_class_change_the_sample():
    assert candidates(KEYS, "cat", 10, 0) != candidates(KEYS, "cat", 10, 1)
    assert candidates(KEYS, "cat", 10, 0) != candidates(KEYS, "dog", 10, 0)


def test_every_image_is_as_likely_as_any_other():
    """300 seeds, 10 of 50: each is expected 60 times, with a deviation of 6.9."""
    counts = np.bincount([KEYS.index(key) for seed in range(300) for key in candidates(KEYS, "cat", 10, seed)])
    assert abs(counts - 60).max() < 4.5 * 6.9


def test_candidates_are_raised_for_large_sets():
    assert candidate_count(300, 4, 1) == 300
    assert candidate_count(300, 4, 50) == 300
    assert candidate_count(300, 4, 51) == 306
    assert candidate_count(10, 1, 7) == 11


def test_counts_name_the_smallest_class_and_what_is_possible():
    counts = {"bee": 40, "ant": 9, "cat": 9}
    check_counts(counts, 2, 4)
    check_counts(counts, 9, 1)
    with pytest.raises(UserError, match=r"--ipc 3 needs 12 .* 'ant' has 9: use --ipc 2 or less, or --factor 1"):
        check_counts(counts, 3, 4)
    with pytest.raises(UserError, match=r"'ant' has 9: use --ipc 9 or less$"):
        check_counts(counts, 10, 1)
    with pytest.raises(UserError, match="--ipc 0: must be at least 1"):
        check_counts(counts, 0, 1)
