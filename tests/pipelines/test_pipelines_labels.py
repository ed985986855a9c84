"""Small sets are labeled by the early teacher, larger ones by the converged; runs answer for what they recorded."""

import shutil

import pytest

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.evaluate.protocols import resolve
from raydd.models.checkpoint import read_info
from raydd.pipelines.job import TeacherSpec
from raydd.pipelines.labels import choose_label_teacher, label_form, label_source
from raydd.pipelines.request import DistillOptions, open_job


def job_of(tmp_path, teacher, ipc: int):
    return open_job(DistillOptions(data="digits", out=str(tmp_path / "run"), teacher=teacher, ipc=ipc, size=16))


def recipe(name: str):
    return resolve(name, num_classes=10, ipc=1, image_size=16)


@pytest.mark.parametrize(
    ("ipc", "wanted", "early"),
    [(1, None, True), (10, None, True), (11, None, False), (1, "converged", False), (50, "early", True)],
)
def test_which_teacher(tmp_path, digits_teacher, ipc, wanted, early):
    spec, facts = choose_label_teacher(ControlConfig(label_teacher=wanted), job_of(tmp_path, digits_teacher, ipc))
    assert spec.early == facts["early"] == early
    assert facts["teacher_hash"] == spec.load().hash and facts["form"] == "online"
    name = "early" if early else "teacher"
    assert facts["teacher_top1"] == read_info(f"{digits_teacher}/{name}.json").top1


def test_without_an_early_teacher_the_converged_one_labels(tmp_path, digits_teacher):
    for name in ("teacher.json", "teacher.safetensors"):
        (tmp_path / "only").mkdir(exist_ok=True)
        shutil.copy(f"{digits_teacher}/{name}", tmp_path / "only" / name)
    job = job_of(tmp_path, str(tmp_path / "only"), 1)
    assert choose_label_teacher(ControlConfig(), job)[1]["early"] is False
    with pytest.raises(UserError, match="no early teacher"):
        choose_label_teacher(ControlConfig(label_teacher="early"), job)


def test_no_teacher_means_hard_labels(tmp_path):
    job = job_of(tmp_path, None, 1)
    assert choose_label_teacher(ControlConfig(), job) == (
        None, {"form": "hard", "teacher": None, "teacher_hash": None, "teacher_top1": None, "early": False},
    )  # fmt: skip
    with pytest.raises(UserError, match="--labels single needs a teacher"):
        choose_label_teacher(ControlConfig(labels="single"), job)


def test_form_of_a_recipe():
    assert label_form(recipe("hard"), {"form": "patch"}, None) == "hard"
    assert label_form(recipe("soft"), {"form": "patch"}, None) == "patch"
    assert label_form(recipe("soft"), {"form": "patch"}, "online") == "online"
    assert label_form(recipe("soft"), {"form": "hard"}, None) == "online"
    with pytest.raises(UserError, match=r"stores no patch labels \(it was made with --labels online\)"):
        label_form(recipe("soft"), {"form": "online"}, "patch")
    with pytest.raises(UserError, match="needs soft labels, not --labels hard"):
        label_form(recipe("soft"), {"form": "online"}, "hard")


def test_a_run_opens_the_teacher_it_records_and_no_other(tmp_path, digits_teacher):
    place = tmp_path / "moved"
    shutil.copytree(digits_teacher, place)
    spec, facts = choose_label_teacher(ControlConfig(), job_of(tmp_path, str(place), 1))
    manifest = {"labels": facts, "classes": list("0123456789"), "size": 16, "method": "random"}
    source = label_source("online", manifest, None)
    assert source.spec == TeacherSpec(name=str(place), classes=tuple("0123456789"), image_size=16, early=True)
    assert source.facts() == {key: facts[key] for key in ("form", "teacher", "teacher_hash", "teacher_top1", "early")}
    # Stored labels need no network.
    assert label_source("patch", manifest, None).spec is None
    assert label_source("hard", manifest, None).facts()["teacher"] is None
    named = label_source("online", manifest, digits_teacher)
    assert named.teacher == digits_teacher and named.teacher_hash == spec.load().hash
    with pytest.raises(UserError, match="is not the one that random was made with"):
        label_source("online", {**manifest, "labels": facts | {"teacher_hash": "other"}}, None)
    with pytest.raises(UserError, match="the run records none: add --teacher"):
        label_source("online", {**manifest, "labels": facts | {"teacher": None}}, None)
