"""LRS and ARS at known corners, t intervals against scipy, summaries over distillation seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from raydd.evaluate import fairness


def test_lrs_corners():
    assert fairness.squash(1) == 1 and fairness.squash(-1) == 0
    assert fairness.lrs(hard_gap=-1, improvement=1) == 1 and fairness.lrs(hard_gap=1, improvement=-1) == 0
    assert fairness.lrs(0, 0) == pytest.approx((1 - 1 / math.e) / (math.e - 1 / math.e))
    assert fairness.lrs(0.3, 0.2, weight=1.0) == fairness.squash(0.2)


def test_ars_corners():
    assert fairness.ars((1, 0), (1, 0)) == 1 and fairness.ars((0, 1), (0, 1)) == 0
    assert fairness.ars((0.5, 0.2), (0.4, 0.4), weight=0.5) == pytest.approx(fairness.squash(0.15))


def test_hlr_and_ior():
    assert fairness.hlr(0.9, 0.6) == pytest.approx(0.3) and fairness.ior(0.7, 0.6) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="not percent"):
        fairness.hlr(90.0, 60.0)


def test_gap_closed():
    assert fairness.gap_closed(0.6, 0.4, 0.8) == pytest.approx(0.5)
    assert math.isnan(fairness.gap_closed(0.6, 0.4, 0.4))


def test_summary_is_over_distillation_seeds_of_student_means():
    found = fairness.summarize({(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8})
    assert found == fairness.Summary(pytest.approx(0.7), pytest.approx(np.std([0.6, 0.8], ddof=1)), 2)
    single = fairness.summarize({(0, 0): 0.5, (0, 1): 0.7, (0, 2): 0.6})
    assert single == fairness.Summary(pytest.approx(0.6), pytest.approx(0.1), 3)
    assert math.isnan(fairness.summarize({(0, 0): 0.5}).std)


def test_paired_interval_against_scipy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(6), rng.random(6)
    found = fairness.paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)) | {99: 0.0})
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 6)
    assert found.mean == pytest.approx((ours - theirs).mean())


def test_pairing_averages_students_within_a_distillation():
    ours = {(d, s): 0.1 * d + 0.01 * s for d in range(3) for s in range(3)}
    theirs = {key: 0.05 for key in ours}
    found = fairness.paired_difference(ours, theirs)
    assert found.n == 3 and found.mean == pytest.approx(0.06)
    assert fairness.paired_difference({(0, s): 0.5 + s for s in range(4)}, {(0, s): s for s in range(4)}).n == 4


def test_claims_need_an_interval_without_zero():
    assert fairness.paired_difference({0: 0.51, 1: 0.52, 2: 0.515}, {0: 0.4, 1: 0.4, 2: 0.4}).better
    assert not fairness.paired_difference({0: 0.9}, {0: 0.1}).better
    noisy = fairness.paired_difference({0: 0.9, 1: 0.1}, {0: 0.1, 1: 0.2})
    assert not noisy.better and not noisy.worse
    with pytest.raises(ValueError, match="no common seeds"):
        fairness.paired_difference({0: 0.9}, {1: 0.1})


@pytest.mark.parametrize(("count", "points"), [(500, 2.2), (3925, 0.8), (10000, 0.5), (50000, 0.22)])
def test_sampling_error(count, points):
    assert 100 * fairness.sampling_error(0.5, count) == pytest.approx(points, abs=0.05)
