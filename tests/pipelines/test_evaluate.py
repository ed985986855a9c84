"""Evaluations: done once, added to, told apart by teacher and labels, and refused before a student is trained."""

import pytest
from commandline import snapshot

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.errors import UserError
from raydd.evaluate.record import read_evaluations
from raydd.pipelines.controls import Control
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.students import StudentUnit
from raydd.pipelines.teacher import TeacherOptions, train
from raydd.runtime.work import Resources
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())
PATCH = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch")))


def test_one_evaluation_per_run_protocol_and_student(make, judge, tmp_path):
    runs = make(RANDOM, "a"), make("full", "b")
    found = evaluate(judge(*runs, protocol="hard@2,soft@2", seeds=2), LOCAL)
    assert [(e.method, e.name, len(e.seeds)) for e in found] == [
        ("random", "hard@2", 2), ("random", "soft@2", 2), ("full", "hard@2", 2), ("full", "soft@2", 2),
    ]  # fmt: skip
    assert [e.labels["form"] for e in found] == ["hard", "online", "hard", "online"]
    assert found[0].protocol_hash == found[2].protocol_hash and found[0].seeds[0].steps == found[2].seeds[0].steps
    assert found[1].bytes["teacher"] > 0 and found[0].bytes["teacher"] == 0
    assert sorted(read_evaluations(Run(runs[0])), key=lambda e: e.name) == found[:2]
    stage = Run(runs[0]).read()["stages"]["evaluate"]
    assert stage["students"] == 4 and stage["ended"]


def test_a_finished_evaluation_is_not_touched_and_seeds_are_added(make, judge, tmp_path):
    run = make(RANDOM)
    first = evaluate(judge(run), LOCAL)
    before = snapshot(tmp_path / "run")
    assert evaluate(judge(run), LOCAL) == first and snapshot(tmp_path / "run") == before
    (more,) = evaluate(judge(run, seeds=2), LOCAL)
    assert [seed.seed for seed in more.seeds] == [0, 1] and more.seeds[0] == first[0].seeds[0]
    before = snapshot(tmp_path / "run")
    assert evaluate(judge(run), LOCAL) == [more] and snapshot(tmp_path / "run") == before


def test_student_seeds_follow_the_distillation_seed(make, judge):
    (found,) = evaluate(judge(make(RANDOM, seed=5)), LOCAL)
    assert found.distill_seed == 5 and [seed.seed for seed in found.seeds] == [5]


def test_a_changed_set_is_judged_again(make, judge, tmp_path):
    run = make(RANDOM)
    (old,) = evaluate(judge(run), LOCAL)
    make(RANDOM, classes="1", force=True)
    (new,) = evaluate(judge(run), LOCAL)
    assert new.revision > old.revision and new.seeds[0].last == old.seeds[0].last


def test_another_teacher_is_another_result(make, judge, teacher, tmp_path, tree):
    other = str(tmp_path / "other")
    recipe = {"arch": "convnet3", "width": 8, "size": 16, "epochs": 12, "early_epochs": 6, "batch": 8, "flip": False}
    train(TeacherOptions(data=str(tree), out=other, **recipe), LOCAL)
    run = make(RANDOM)
    (first,) = evaluate(judge(run, protocol="soft@2"), LOCAL)
    (second,) = evaluate(judge(run, protocol="soft@2", teacher=other), LOCAL)
    assert first.labels["teacher"] == teacher and second.labels["teacher"] == other
    assert first.labels["teacher_hash"] != second.labels["teacher_hash"]
    assert second.seeds[0].curve != first.seeds[0].curve or second.seeds[0].last != first.seeds[0].last


def test_patch_labels_are_learned_from(make, judge):
    (found,) = evaluate(judge(make(PATCH), protocol="soft@2"), LOCAL)
    assert found.labels["form"] == "patch" and found.labels["teacher_hash"]
    assert found.bytes["label"] == 6 * 4 * 3 * 2 and found.bytes["teacher"] == 0


def test_students_that_finished_are_kept_when_another_fails(make, judge, tmp_path, monkeypatch):
    run, original = make(RANDOM), StudentUnit.run

    def broken(self, context):
        if self.student == "convnet2":
            raise UserError("convnet2 went wrong")
        original(self, context)

    monkeypatch.setattr(StudentUnit, "run", broken)
    with pytest.raises(UserError, match=r"convnet2 went wrong.*the others are kept"):
        evaluate(judge(run, students="convnet2,convnet3"), LOCAL)
    assert [e.student for e in read_evaluations(Run(run))] == ["convnet3"]
    assert '"unit_failed", "name": "hard_2-convnet2-0"' in (tmp_path / "run" / "events.jsonl").read_text()
