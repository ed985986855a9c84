"""Switches: what is refused, what follows from what, and that the released preset is the authors' setting."""

import dataclasses

import pytest

from raydd.distill.ld3m.config import PRESETS, Ld3mConfig
from raydd.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    PRESETS[preset]().check()


def test_released():
    config = PRESETS["ld3m-released"]()
    assert (config.steps, config.guidance, config.anchor, config.settled_weights) == (10, 3.0, "x0", "to_zero")
    assert (config.learn, config.init, config.noise, config.graph, config.chunk) == ("both", "real", "pass", "two", 10)
    assert (config.loss, config.real_batch, config.distance, config.iterations) == ("dm", 256, "layers", 10_000)
    assert (config.optimizer, config.momentum, config.lr_latent, config.lr_cond) == ("sgd", 0.5, 1.0, 1.0)
    mtt = (config.student_steps, config.expert_epochs, config.max_start, config.student_lr, config.student_lr_lr)
    assert mtt == (10, 2, 2, 0.01, 1e-6) and config.mtt_gradient == "tesla"


def test_weights_follow_the_anchor():
    assert [Ld3mConfig(anchor=anchor).settled_weights for anchor in ("x0", "mean", "none")] == [
        "to_zero",
        "t_over_T",
        "to_zero",
    ]
    assert Ld3mConfig(anchor="mean", weights="to_zero").settled_weights == "to_zero"
    assert Ld3mConfig(weights="t_over_T").settled_weights == "t_over_T"


@pytest.mark.parametrize(
    ("switches", "learns"),
    [
        ({}, (True, True)),
        ({"learn": "latent"}, (True, False)),
        ({"learn": "condition"}, (False, True)),
        ({"steps": 0}, (True, False)),
        ({"generator": "pixels"}, (True, False)),
        ({"steps": 1}, (True, True)),
    ],
    ids=str,
)
def test_what_is_learned(switches, learns):
    config = Ld3mConfig(**switches)
    config.check()
    assert config.learns == learns


REFUSED = {
    "--steps -1: must be at least 0": {"steps": -1},
    "--real-batch 0: must be at least 1": {"real_batch": 0},
    "--student-steps 0: ": {"student_steps": 0},
    "--expert-epochs 0: ": {"expert_epochs": 0},
    "--max-start 0: ": {"max_start": 0},
    "--iterations -1: ": {"iterations": -1},
    "--heldout -1: ": {"heldout": -1},
    "--chunk 0: ": {"chunk": 0},
    "--decode-chunk 0: ": {"decode_chunk": 0},
    "--student-batch 0: ": {"student_batch": 0},
    "--pool 0: must be at least 1": {"pool": 0},
    "--keep-steps -1: must be at least 0": {"keep_steps": -1},
    "--guidance -1: ": {"guidance": -1.0},
    "--guidance nan: ": {"guidance": float("nan")},
    "--lr-latent -1: ": {"lr_latent": -1.0},
    "--lr-cond nan: ": {"lr_cond": float("nan")},
    "--student-lr 0: must be above 0": {"student_lr": 0.0},
    "--student-lr-lr -1: ": {"student_lr_lr": -1.0},
    "--move 0: must be above 0": {"move": 0.0},
    "--move nan: ": {"move": float("nan")},
    "--momentum 1: must be from 0 to below 1": {"momentum": 1.0},
    "--momentum -0.1: ": {"momentum": -0.1},
    "unknown anchor 'x1'": {"anchor": "x1"},
    "unknown weights 'linear'": {"weights": "linear"},
    "unknown loss 'idm'": {"loss": "idm"},
    "add --graph two": {"noise": "pass"},
    "without a sampling chain there is no condition": {"learn": "condition", "steps": 0},
    "there is no condition; use": {"learn": "condition", "generator": "pixels"},
    "--loss mtt needs --experts DIR": {"loss": "mtt"},
    "--no-clamp serves --generator pixels": {"clamp": False},
    "--experts serve --loss mtt, not dc": {"loss": "dc", "experts": "somewhere"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(Ld3mConfig(), **REFUSED[message]).check()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bounds_are_allowed():
    """Zero where it means something: the autoencoder alone, no iterations, no rate."""
    zeros = {"steps": 0, "iterations": 0, "heldout": 0, "keep_steps": 0, "guidance": 0.0, "lr_latent": 0.0}
    Ld3mConfig(**zeros, momentum=0.0, student_lr_lr=0.0).check()
    Ld3mConfig(noise="pass", graph="two").check()
    Ld3mConfig(loss="mtt", experts="somewhere", student_batch=1).check()
