"""Evaluations: done once, added to, told apart by teacher and labels, and refused before a student is trained."""

import json
import shutil

import pytest
from commandline import snapshot

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.errors import UserError
from raydd.evaluate.record import read_evaluations
from raydd.pipelines import job
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill, reference
from raydd.pipelines.evaluate import EvaluateOptions, evaluate, store_views
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.students import StudentUnit
from raydd.pipelines.teacher import TeacherOptions, train
from raydd.runtime.work import Resources
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())
PATCH = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch")))


@pytest.fixture
def teacher(tmp_path, digits_teacher) -> str:
    """A copy of the digits' teacher that a test may move."""
    return shutil.copytree(digits_teacher, str(tmp_path / "teacher"))


@pytest.fixture
def make(tree, tmp_path, teacher):
    def run_of(method, name: str = "run", **changes) -> str:
        plain = {"data": str(tree), "out": str(tmp_path / name), "teacher": teacher, "ipc": 2, "size": 16}
        options = DistillOptions(**(plain | changes))
        _ = reference(options) if method == "full" else distill(options, method, LOCAL)
        return options.out

    return run_of


@pytest.fixture
def ask(tree):
    def options(*runs: str, **changes) -> EvaluateOptions:
        plain = {"val": str(tree), "students": "convnet3", "protocol": "hard@2", "seeds": 1, "flip": False}
        return EvaluateOptions(run=runs, **(plain | changes))

    return options


def test_one_evaluation_per_run_protocol_and_student(make, ask, tmp_path):
    runs = make(RANDOM, "a"), make("full", "b")
    found = evaluate(ask(*runs, protocol="hard@2,soft@2", seeds=2), LOCAL)
    assert [(e.method, e.name, len(e.seeds)) for e in found] == [
        ("random", "hard@2", 2), ("random", "soft@2", 2), ("full", "hard@2", 2), ("full", "soft@2", 2),
    ]  # fmt: skip
    assert [e.labels["form"] for e in found] == ["hard", "online", "hard", "online"]
    assert found[0].protocol_hash == found[2].protocol_hash and found[0].seeds[0].steps == found[2].seeds[0].steps
    assert found[1].bytes["teacher"] > 0 and found[0].bytes["teacher"] == 0
    assert sorted(read_evaluations(Run(runs[0])), key=lambda e: e.name) == found[:2]
    stage = Run(runs[0]).read()["stages"]["evaluate"]
    assert stage["students"] == 4 and stage["ended"]


def test_a_finished_evaluation_is_not_touched_and_seeds_are_added(make, ask, tmp_path):
    run = make(RANDOM)
    first = evaluate(ask(run), LOCAL)
    before = snapshot(tmp_path / "run")
    assert evaluate(ask(run), LOCAL) == first and snapshot(tmp_path / "run") == before
    (more,) = evaluate(ask(run, seeds=2), LOCAL)
    assert [seed.seed for seed in more.seeds] == [0, 1] and more.seeds[0] == first[0].seeds[0]
    before = snapshot(tmp_path / "run")
    assert evaluate(ask(run), LOCAL) == [more] and snapshot(tmp_path / "run") == before


def test_student_seeds_follow_the_distillation_seed(make, ask):
    (found,) = evaluate(ask(make(RANDOM, seed=5)), LOCAL)
    assert found.distill_seed == 5 and [seed.seed for seed in found.seeds] == [5]


def test_a_changed_set_is_judged_again(make, ask, tmp_path):
    run = make(RANDOM)
    (old,) = evaluate(ask(run), LOCAL)
    make(RANDOM, classes="1", force=True)
    (new,) = evaluate(ask(run), LOCAL)
    assert new.revision > old.revision and new.seeds[0].last == old.seeds[0].last


def test_another_teacher_is_another_result(make, ask, teacher, tmp_path, tree):
    other = str(tmp_path / "other")
    recipe = {"arch": "convnet3", "width": 8, "size": 16, "epochs": 12, "early_epochs": 6, "batch": 8, "flip": False}
    train(TeacherOptions(data=str(tree), out=other, **recipe), LOCAL)
    run = make(RANDOM)
    (first,) = evaluate(ask(run, protocol="soft@2"), LOCAL)
    (second,) = evaluate(ask(run, protocol="soft@2", teacher=other), LOCAL)
    assert first.labels["teacher"] == teacher and second.labels["teacher"] == other
    assert first.labels["teacher_hash"] != second.labels["teacher_hash"]
    assert second.seeds[0].curve != first.seeds[0].curve or second.seeds[0].last != first.seeds[0].last


def test_stored_views_give_the_online_result(make, ask, tmp_path, teacher):
    run = make(RANDOM)
    options = ask(run, protocol="hard,soft@3")
    (online,) = evaluate(ask(run, protocol="soft@3"), LOCAL)
    size = store_views(run, options, "fp32")
    assert size > 3 * 6 * 3 * 4
    shutil.rmtree(teacher)
    job._load.cache_clear()
    (stored,) = evaluate(ask(run, protocol="soft@3", labels="views"), LOCAL)
    same = ("last", "best", "curve", "per_class", "steps")
    assert all(getattr(stored.seeds[0], name) == getattr(online.seeds[0], name) for name in same)
    assert stored.seeds[0].teacher_forwards == 0 < online.seeds[0].teacher_forwards
    assert stored.labels["teacher_hash"] == online.labels["teacher_hash"] and stored.labels["form"] == "views"
    assert stored.bytes == online.bytes | {"label": size, "teacher": 0}


def test_views_of_other_images_are_refused(make, ask, tmp_path):
    run = make(RANDOM)
    store_views(run, ask(run, protocol="soft@2"), "fp16")
    with pytest.raises(UserError, match=r"stored views .* were made with protocol"):
        evaluate(ask(run, protocol="soft@3", labels="views"), LOCAL)
    record = tmp_path / "run" / "distilled" / "views" / "views.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"teacher": "other"}))
    with pytest.raises(UserError, match="were made with teacher other"):
        evaluate(ask(run, protocol="soft@2", labels="views"), LOCAL)


def test_patch_labels_are_learned_from(make, ask):
    (found,) = evaluate(ask(make(PATCH), protocol="soft@2"), LOCAL)
    assert found.labels["form"] == "patch" and found.labels["teacher_hash"]
    assert found.bytes["label"] == 6 * 4 * 3 * 2 and found.bytes["teacher"] == 0


REFUSALS = [
    ({"protocol": "sfot"}, "unknown protocol 'sfot': did you mean 'soft'"),
    ({"protocol": "soft@0"}, "after @ stands a number of epochs"),
    ({"students": "convnet33x"}, "unknown network 'convnet33x': did you mean 'convnet3'"),
    ({"students": "convnet3,convnet5"}, "--students convnet5 does not fit .*run: convnet5 halves the image 5 times"),
    ({"seeds": 0}, "--seeds 0: must be at least 1"),
    ({"ddp": 2}, "--ddp 2 needs --executor ray"),
    ({"labels": "patch", "protocol": "soft"}, "the run stores no patch labels"),
    ({"labels": "views", "protocol": "soft"}, "holds no stored views"),
    ({"labels": "online"}, "--labels online has no effect on protocol hard@2"),
    ({"labels": "hard", "protocol": "soft"}, "protocol soft needs soft labels, not --labels hard"),
    ({"protocol": "soft", "teacher": "/nowhere"}, "no early teacher in /nowhere"),
    ({"val": "digits"}, "3 classes but digits has 10"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_write_nothing(make, ask, tmp_path, changes, message):
    run = make(RANDOM)
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match=message) as error:
        evaluate(ask(run, **changes), LOCAL)
    assert "\n" not in str(error.value) and snapshot(tmp_path / "run") == before


def test_training_images_are_no_validation_images(make, ask, tree):
    with pytest.raises(UserError, match="overlaps the training source"):
        evaluate(ask(make(RANDOM), val=str(tree / "train")), LOCAL)


def test_runs_without_labels_or_classes(make, ask, tmp_path):
    with pytest.raises(UserError, match="soft labels need a teacher and the run records none: add --teacher"):
        evaluate(ask(make(RANDOM, "bare", teacher=None), protocol="soft"), LOCAL)
    with pytest.raises(UserError, match=r"lacks 2 of 3 classes \(first: '0'\)"):
        evaluate(ask(make(RANDOM, "part", classes="1")), LOCAL)
    with pytest.raises(UserError, match="holds no distilled set"):
        evaluate(ask(str(tmp_path / "nothing")), LOCAL)
    with pytest.raises(UserError, match="protocol hard needs no soft labels"):
        store_views(make(RANDOM), ask("", protocol="hard"), "fp16")


def test_students_that_finished_are_kept_when_another_fails(make, ask, tmp_path, monkeypatch):
    run, original = make(RANDOM), StudentUnit.run

    def broken(self, context):
        if self.student == "convnet2":
            raise UserError("convnet2 went wrong")
        original(self, context)

    monkeypatch.setattr(StudentUnit, "run", broken)
    with pytest.raises(UserError, match=r"convnet2 went wrong.*the others are kept"):
        evaluate(ask(run, students="convnet2,convnet3"), LOCAL)
    assert [e.student for e in read_evaluations(Run(run))] == ["convnet3"]
    assert '"unit_failed", "name": "hard_2-convnet2-0"' in (tmp_path / "run" / "events.jsonl").read_text()
