"""Settled rates: one plain step moves each tensor by the given share of its size; what is given is kept."""

import pytest
import torch
from small_priors import draw

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.loop import Rates
from raydd.distill.ld3m.rates import ITERATIONS, calibrate, rms, rounded
from raydd.errors import UserError

Z, C = 3 * draw(4, 3, 2, 2), 0.1 * draw(4, 8, key=1)


class Slopes:
    """A descent whose gradients are keyed draws of given sizes; `objective` counts how often it goes back."""

    def __init__(self, sizes=(2.0, 0.5), **switches):
        self.config, self.sizes, self.calls, self.restored = Ld3mConfig(**switches), sizes, [], 0
        self.objective = self

    def gradients(self, z, c, iteration):
        assert torch.equal(z, Z)
        self.calls.append(iteration)
        drawn = [s * draw(*v.shape, key=iteration) for s, v in zip(self.sizes, (Z, C))]
        return 0.0, tuple(g if learned else None for g, learned in zip(drawn, self.config.learns))

    def restore(self, state):
        self.restored += not state


def test_a_step_moves_by_the_given_share():
    descent = Slopes(move=0.02)
    rates = calibrate(descent, Z, C)
    assert descent.calls == list(range(ITERATIONS)) and descent.restored == ITERATIONS
    for rate, value, size in ((rates.latent, Z, 2.0), (rates.cond, C, 0.5)):
        slopes = [size * draw(*value.shape, key=iteration).square().mean().sqrt() for iteration in range(ITERATIONS)]
        mean = float(sum(slopes) / ITERATIONS)
        assert rate * mean == pytest.approx(0.02 * float(value.square().mean().sqrt()), rel=0.005)
        assert rate == rounded(rate)


def test_given_rates_are_kept():
    descent = Slopes(lr_latent=7.0, lr_cond=0.0)
    assert calibrate(descent, Z, C) == Rates(7.0, 0.0) and not descent.calls
    half = calibrate(Slopes(lr_latent=7.0), Z, C)
    assert half == Rates(7.0, calibrate(Slopes(), Z, C).cond)


def test_what_is_not_learned_has_no_rate():
    assert calibrate(Slopes(learn="latent"), Z, C) == Rates(calibrate(Slopes(), Z, C).latent, 0.0)
    assert calibrate(Slopes(learn="condition"), Z, C) == Rates(0.0, calibrate(Slopes(), Z, C).cond)
    unconditional = Slopes(lr_latent=7.0)
    assert calibrate(unconditional, Z, None) == Rates(7.0, 0.0) and not unconditional.calls


def test_adams_rate_is_the_move():
    descent = Slopes(optimizer="adam", move=0.02)
    assert calibrate(descent, Z, C) == Rates(rounded(0.02 * rms(Z)), rounded(0.02 * rms(C))) and not descent.calls


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_no_usable_gradient(size):
    with pytest.raises(UserError, match=r"no usable gradient arrives \(RMS .*\): give --lr-latent and --lr-cond"):
        calibrate(Slopes(sizes=(1.0, size)), Z, C)


def test_rms_and_rounding():
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx(12.5**0.5)
    assert [rounded(value) for value in (123456.0, 0.00123456, 1.0)] == [123000.0, 0.00123, 1.0]
