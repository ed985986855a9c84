"""Switches: what is refused, and that the released preset is the authors' setting."""

import dataclasses

import pytest

from raydd.distill.dsco.config import PRESETS, DscoConfig
from raydd.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    PRESETS[preset]().check()


def test_released():
    config = PRESETS["dsco-released"]()
    assert (config.settled_lr, config.settled_momentum, config.iterations) == (0.1, 0.9, 200)
    assert (config.target_level, config.bins, config.strata) == ("before", "topup", "jittered")
    assert (config.extractor, config.norm, config.optimizer) == ("per-class", "penalty", "sgd")
    assert config.kappa / 2048 == pytest.approx(0.0005)
    assert config.kappa_free / 2048 / 16 == pytest.approx(0.001, rel=2e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"eta": 0.0},
        {"eta": 1.5},
        {"steps": 1},
        {"rounds": 0},
        {"iterations": -1},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"kappa": float("nan")},
        {"chunk": 0},
        {"templates": 1},
        {"real_level": 0.0},
        {"start": "latice"},
        {"access": "free", "start": "real"},
        {"stop": "plateau"},
        {"norm": "penalty"},
        {"pack": 0},
        {"pack": 2, "extractor": "per-class"},
        {"pack": 2, "stop": "plateau", "optimizer": "adam"},
    ],
    ids=str,
)
def test_refused(change):
    with pytest.raises(UserError) as error:
        dataclasses.replace(DscoConfig(), **change).check()
    assert "\n" not in str(error.value)


def test_small_latents_take_more_iterations():
    assert [DscoConfig().at((1, side, side)).iterations for side in (8, 16, 32)] == [80, 40, 40]
    assert DscoConfig(iterations=7).at((1, 8, 8)).iterations == 7
