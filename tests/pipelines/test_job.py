"""A job knows its source by class, its teacher is measured and compared, and stages are checked without writing."""

import pytest

from raydd.errors import UserError
from raydd.pipelines.job import audit, check_stage, is_settled, open_teacher, opened
from raydd.pipelines.request import DistillOptions, open_job
from raydd.store.run import Run


def test_keys_and_counts_by_class(tree, tmp_path):
    job = open_job(DistillOptions(data=str(tree), out=str(tmp_path / "run"), size=16))
    assert job.counts() == {"0": 16, "1": 16, "2": 16}
    assert job.keys(1) == [f"1/{i:02d}.png" for i in range(16)]
    assert sorted(key for label in range(3) for key in job.keys(label)) == sorted(job.source.index()["key"].to_pylist())


def test_a_teacher_of_more_classes_is_cut_by_name(tree, digits_teacher):
    source = opened(str(tree), "train")
    spec = open_teacher(digits_teacher, source, arch=None, rows=None, size=None)
    assert spec.load().info.classes == ("0", "1", "2") and spec.load().info.outputs == 3


def test_a_teacher_is_measured_on_the_validation_part(digits_teacher, capsys):
    source = opened("digits", "train")
    spec = open_teacher(digits_teacher, source, arch=None, rows=None, size=None)
    facts = audit(spec, "digits", 16)
    assert facts["images"] == 359 and facts["top1"] == pytest.approx(spec.load().info.top1)
    assert capsys.readouterr().out == ""


def test_no_validation_part_is_a_warning(tree, digits_teacher, capsys):
    spec = open_teacher(digits_teacher, opened(str(tree), "train"), arch=None, rows=None, size=None)
    assert audit(spec, str(tree / "train"), 16) == {}
    assert "warning: the teacher was not measured" in capsys.readouterr().out


def test_classes_in_another_order_are_noticed(tree, digits_teacher):
    (tree / "classes.txt").write_text("1\n0\n2\n")
    spec = open_teacher(digits_teacher, opened(str(tree), "train"), arch=None, rows=(0, 1, 2), size=None)
    with pytest.raises(UserError, match="class 0 is output 1"):
        audit(spec, str(tree), 16)


def test_stages_are_compared_without_writing(tmp_path):
    run = Run(str(tmp_path / "run"))
    check_stage(run, "score", {"a": 1}, force=False)
    assert not is_settled(run, "score", {"a": 1}) and not run.exists()
    run.begin("score", {"a": 1}, seed=0)
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert not is_settled(run, "score", {"a": 1})
    with pytest.raises(UserError, match=r"score stage of another configuration \(a: 1 -> 2\)"):
        check_stage(run, "score", {"a": 2}, force=False)
    check_stage(run, "score", {"a": 2}, force=True)
    check_stage(run, "distill", {"a": 2}, force=False)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    run.end("score")
    assert is_settled(run, "score", {"a": 1}) and not is_settled(run, "score", {"a": 2})
