"""Counts of InfoUtil and RDED equal those of tiny distillations; where images decide, they bound them."""

import pytest
from pipelines.plan.plan_counter import done, planned, rows

from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.plan.infoutil import crops_at_most

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


def test_crops_of_an_image():
    crops = [{}, {"alpha": 0.0}, {"crop_from": "full"}, {"crop_from": "random_resized", "crops": 7}, ALL, {"pool": 4}]
    assert [crops_at_most(InfoUtilConfig(crop=CropConfig(**crop))) for crop in crops] == [5, 1, 1, 7, 9, 1]
