"""The validation source never overlaps what the distillation saw; the tune split does not depend on listing order."""

import pytest

from raydd.errors import UserError
from raydd.evaluate.overlap import check_keys, check_sources, tune_split


@pytest.mark.parametrize(("train", "val"), [("d", "d"), ("d", "d/val"), ("d/train", "d"), ("s3://b/d/", "s3://b/d")])
def test_overlapping_sources_are_refused(train, val):
    with pytest.raises(UserError, match="overlaps"):
        check_sources(train, val)


def test_held_out_sources_pass():
    check_sources("d/train", "d/val")
    check_sources("d/val", "d/validation")


def test_shared_keys_are_refused():
    with pytest.raises(UserError, match=r"1 images .*first: b"):
        check_keys("d", ["a", "b"], "d", ["b", "c"])
    check_keys("d", ["a"], "d", ["b"])
    check_keys("d/train", ["0/1.png"], "d/val", ["0/1.png"])


def test_tune_split():
    keys = [f"{i}.png" for i in range(100)]
    chosen = {keys[i] for i in tune_split(keys)}
    assert len(chosen) == 10
    assert {keys[::-1][i] for i in tune_split(keys[::-1])} == chosen
