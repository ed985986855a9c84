"""Schedules against closed forms at the start, the middle and the end; reference epochs."""

import math

import pytest

from raydd.train.schedule import Schedule, reference_epoch


def test_half_cosine_ends_at_half_the_rate():
    half = Schedule("cosine", stretch=2.0)
    assert half.factor(0, 300) == 1
    assert half.factor(150, 300) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert half.factor(299, 300) == pytest.approx((1 + math.cos(math.pi * 299 / 600)) / 2)
    assert 0.5 < half.factor(299, 300) < 0.503


def test_full_cosine():
    full = Schedule("cosine")
    assert [full.factor(e, 300) for e in (0, 150)] == pytest.approx([1, 0.5])
    assert full.factor(299, 300) == pytest.approx((1 - math.cos(math.pi / 300)) / 2)


@pytest.mark.parametrize("epochs", [1000, 1300, 3000])
def test_step_milestones_are_rounded_down(epochs):
    plan = Schedule("step", milestones=(2 / 3, 5 / 6), gamma=0.2)
    first, second = 2 * epochs // 3, 5 * epochs // 6
    found = [plan.factor(e, epochs) for e in (0, first - 1, first, second - 1, second, epochs - 1)]
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_warmup_cosine():
    glad = Schedule("warmup_cosine", warmup=0.5, start=1e-7)
    assert glad.factor(0, 1000) == 1e-7
    assert glad.factor(250, 1000) == pytest.approx(0.5, abs=1e-6)
    assert glad.factor(500, 1000) == 1
    assert glad.factor(750, 1000) == pytest.approx(0.5)
    assert glad.factor(999, 1000) == pytest.approx((1 - math.cos(math.pi / 500)) / 2)


def test_constant():
    assert {Schedule().factor(e, 10) for e in range(10)} == {1.0}


def test_reference_epoch_is_the_true_epoch_without_an_override():
    per_epoch, epochs = 7, 11
    assert [reference_epoch(i, 77, epochs) for i in range(77)] == [i // per_epoch for i in range(77)]


def test_reference_epochs_stretch_over_any_number_of_steps():
    found = [reference_epoch(i, 1000, 30) for i in range(1000)]
    assert found[0] == 0 and found[-1] == 29 and found == sorted(found) and set(found) == set(range(30))
