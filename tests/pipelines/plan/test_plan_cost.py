"""Counts of methods that score the source equal those of tiny distillations; where images decide, they bound them."""

import pytest
from pipelines.plan.plan_counter import done, planned, rows

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.plan.cost import Amount, Op, Stage, add, crops_at_most, rows_of, times

ALL = {"score_all_windows": True}
EXACT = {
    "gradient norms": (ALL, {}, {}),
    "a random estimator": (ALL | {"estimator": "captum", "evaluations": 25}, {}, {}),
    "bf16, one forward": (ALL | {"estimator": "windows", "score": "el2n"}, {}, {"precision": "bf16"}),
    "rded, stored labels": ({"crop_from": "random_resized", "score": "ce"}, {"labels": "patch", "factor": 2}, {}),
    "no scores": ({"crop_from": "random_window", "score": "none", "crops": 1}, {}, {}),
    "whole images": ({"crop_from": "full", "crops": 1}, {"labels": "single"}, {}),
}


def options(tree, out, teacher, **changes) -> DistillOptions:
    return DistillOptions(data=str(tree), out=str(out), teacher=teacher, **({"ipc": 2, "batch": 7} | changes))


def infoutil(crop: dict, select: dict) -> InfoUtil:
    return InfoUtil("infoutil", InfoUtilConfig(crop=CropConfig(**crop), select=SelectConfig(**{"mipc": 12} | select)))


@pytest.mark.parametrize(("crop", "select", "ask"), EXACT.values(), ids=EXACT)
def test_infoutil(digits_tree, tmp_path, digits_teacher, crop, select, ask):
    asked, method = options(digits_tree, tmp_path, digits_teacher, **ask), infoutil(crop, select)
    count = rows(planned(asked, method))
    real = done(asked, method)
    assert count["game"] + count["teacher"] + count["gradnorm"] == real["classified"]
    assert count["cut"] == real["cut"]
    assert count["read 16 px"] == real["read 16 px"] == 36 + 6 * method.factor(16) ** 2


def test_equal_crops_are_scored_once(digits_tree, tmp_path, digits_teacher):
    asked, method = options(digits_tree, tmp_path, digits_teacher), infoutil({}, {})
    count = rows(planned(asked, method))
    real = done(asked, method)["classified"]
    most = count["game"] + count["teacher"] + count["gradnorm"]
    assert count["game"] < real < most


@pytest.mark.parametrize("name", ["random", "kmeans", "herding"])
@pytest.mark.parametrize("mipc", [None, 9])
def test_controls(digits_tree, tmp_path, digits_teacher, name, mipc):
    asked = options(digits_tree, tmp_path, digits_teacher)
    method = Control(name, ControlConfig(mipc=mipc))
    count = rows(planned(asked, method))
    real = done(asked, method)
    assert count["teacher"] == real["classified"] and (count["teacher"] > 0) == (name != "random")
    # Random images have spares for broken ones, here the whole class.
    assert count["read 16 px"] == real["read 16 px"] == (48 if name == "random" else 3 * (mipc or 16) + 6)
    assert count["save"] == 6


def test_crops_of_an_image():
    crops = [{}, {"alpha": 0.0}, {"crop_from": "full"}, {"crop_from": "random_resized", "crops": 7}, ALL, {"pool": 4}]
    assert [crops_at_most(InfoUtilConfig(crop=CropConfig(**crop))) for crop in crops] == [5, 1, 1, 7, 9, 1]


def test_amounts_add_up():
    a, b = Op("read", "8 px"), Op("read", "16 px")
    total = add([{a: Amount(1, 2)}, {a: Amount(1, 3), b: Amount(1, 1)}])
    assert total == {a: Amount(2, 5), b: Amount(1, 1)} and rows_of([total], "read") == 6
    assert times(total, 3)[a] == Amount(6, 15)
    stage = Stage("classes", (), once={a: Amount(1, 4)})
    assert stage.total(3) == {a: Amount(3, 12)}
