"""Presets are what the papers say, and switches that cannot work are refused in one line."""

import dataclasses

import pytest

from raydd.distill.infoutil.config import PRESETS, CropConfig, InfoUtilConfig, SelectConfig
from raydd.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_their_own_check(name):
    PRESETS[name]().check(32)


def test_presets_by_hand():
    paper = PRESETS["paper"]().crop
    assert (paper.estimator, paper.evaluations, paper.crops, paper.alpha, paper.grid, paper.pool) == (
        "captum",
        25,
        5,
        2,
        4,
        2,
    )
    rded = PRESETS["rded"]()
    assert (rded.crop.crop_from, rded.crop.score, rded.crop.score_input) == ("random_resized", "ce", "padded")
    assert (rded.select.direction, rded.select.mosaic, rded.select.mipc) == ("bottom", "strided", 300)


def test_tiles_by_image_size():
    assert [InfoUtilConfig().tile_factor(size) for size in (32, 64, 128, 224)] == [1, 1, 2, 2]
    assert InfoUtilConfig(select=SelectConfig(factor=2)).tile_factor(32) == 2


@pytest.mark.parametrize(
    ("part", "switches", "message"),
    [
        ("crop", {"estimator": "bordr"}, "did you mean 'border'"),
        ("crop", {"grid": 0}, "--grid 0: must be 1 to 32"),
        ("crop", {"grid": 5}, "--size 32 is not divisible by --grid 5"),
        ("crop", {"pool": 5}, "--pool 5: must be 1 to 4"),
        ("crop", {"crops": 0}, "--crops 0: must be at least 1"),
        ("crop", {"alpha": -1.0}, "--alpha -1.0: must be at least 0"),
        ("crop", {"evaluations": 51}, "evaluations 51"),
        ("select", {"factor": 3}, "--size 32 is not divisible by --factor 3"),
        ("select", {"factor": 0}, "--factor 0: must be 1 to 32"),
        ("select", {"factor": -2}, "--factor -2: must be 1 to 32"),
        ("select", {"mipc": 0}, "--mipc 0: must be at least 1"),
        ("select", {"per_image": "pooled", "max_per_image": 6}, "--max-per-image 6: must be 1 to 5"),
        ("select", {"direction": "up"}, "unknown direction 'up'"),
    ],
)
def test_impossible_switches(part, switches, message):
    config = dataclasses.replace(
        InfoUtilConfig(), **{part: {"crop": CropConfig, "select": SelectConfig}[part](**switches)}
    )
    with pytest.raises(UserError, match=message) as error:
        config.check(32)
    assert "\n" not in str(error.value)
