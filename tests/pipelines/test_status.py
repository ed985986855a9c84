"""`raydd status` on runs that finished, failed, are at work, died, or are damaged: what it says is what was done."""

import dataclasses
import json
import os
import platform
import shutil

import pytest
from commandline import done, raydd, refused, snapshot

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.status import ENDED, LOST, RUNNING, STOPPED, lines, read_status
from raydd.report import scalars
from raydd.runtime.work import Resources
from raydd.store import events, filesystem, lease
from raydd.store.holder import STALE_S, Holder
from raydd.store.progress import start_unit, start_work
from raydd.store.run import Run

LOCAL = Resources(executor="local")


def distilled(tree, out, **changes) -> Run:
    plain = {"data": str(tree), "out": str(out), "ipc": 1, "size": 8}
    distill(DistillOptions(**(plain | changes)), Control("random", ControlConfig()), LOCAL)
    return Run(str(out))


def test_a_finished_run(digits_tree, tmp_path):
    run = distilled(digits_tree, tmp_path / "run")
    evaluate(
        EvaluateOptions(run=(run.uri,), val=str(digits_tree), students="convnet3", protocol="hard@1", seeds=2), LOCAL
    )
    before = snapshot(tmp_path)
    found = read_status(run)
    assert snapshot(tmp_path) == before, "status writes nothing"
    assert found.state == ENDED and found.holder is None and found.made["method"] == "random"
    by_name = {stage.name: stage for stage in found.stages}
    assert (by_name["distill"].done, by_name["distill"].total) == (3, 3)
    assert (by_name["evaluate"].done, by_name["evaluate"].total, by_name["evaluate"].facts["students"]) == (2, 2, 2)
    assert all(stage.ended and stage.rate is None and not stage.in_flight for stage in found.stages)
    text = done("status", "--run", run.uri)
    assert "random, IPC 1, seed 0" in text and "3 of 3 classes" in text and "2 of 2 students" in text
    assert "last event: student_trained hard_1-convnet3-" in text
    assert json.loads(done("status", "--run", run.uri, "--json"))["stages"][0]["done"] == 3
    folder = tmp_path / "board"
    done("status", "--run", run.uri, "--tensorboard", str(folder))
    # By default the same is written at the end of each stage.
    assert (folder / scalars.FILE).read_bytes() == (tmp_path / "run" / scalars.FOLDER / scalars.FILE).read_bytes()


def test_numbers_that_are_not_there_are_told_beside_the_answer(tmp_path):
    run = Run(str(tmp_path / "run"))
    run.begin("distill", {"method": "random"}, seed=0)
    told = raydd("status", "--run", run.uri, "--json", "--tensorboard", tmp_path / "board")
    assert told.code == 0 and json.loads(told.out) and not (tmp_path / "board").exists()
    assert told.err.splitlines() == ["warning: nothing written for TensorBoard: no numbers yet, or no tensorboardX"]


def test_a_run_with_a_failed_class(digits_tree, tmp_path):
    shutil.copytree(digits_tree, tmp_path / "tree")
    for path in (tmp_path / "tree" / "train" / "1").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="only 0 of 16"):
        distilled(tmp_path / "tree", tmp_path / "run")
    found = read_status(Run(str(tmp_path / "run")))
    (stage,) = found.stages
    assert found.state == STOPPED and (stage.done, stage.total) == (2, 3)
    assert list(stage.failed) == ["1"] and "only 0 of 16" in stage.failed["1"] and not stage.in_flight
    assert "  failed: 1: only 0 of 16" in "\n".join(lines(found))


@pytest.fixture
def at_work(tmp_path) -> tuple[Run, float]:
    """A run whose job has scored 100 of 400 images, dropping 4, and two of ten classes in 20 s; and that moment."""
    run = Run(str(tmp_path / "run"))
    run.begin("distill", {"method": "dsco", "ipc": 10, "seed": 3, "classes": [f"c{i}" for i in range(10)]}, seed=3)
    run.begin("score", {}, seed=3)
    start_work(run, "score", total=400, left=300)
    events.append(run, "unit_scored", unit="x", images=96, dropped=4)
    start_work(run, "distill", total=10, left=10)
    begun = events.read(run)[-1]["time"]
    for name in ("c1", "c2", "c3", "c4"):
        start_unit(run, name, [name])
    for label in (1, 2):
        filesystem.write_atomic(run.path("distilled", f"label={label}", "done.json"), b"{}")
        events.append(run, "class_committed", name=f"c{label}")
    events.append(run, "unit_preempted", name="c3")
    events.append(run, "unit_retried", name="c4")
    start_unit(run, "c4", ["c4"])
    holder = Holder([run])
    holder.acquire()
    return run, begun + 20


def test_a_run_at_work(at_work):
    run, now = at_work
    found = read_status(run, now)
    assert found.state == RUNNING and found.holder["pid"] == os.getpid() and found.holder["host"] == platform.node()
    stage, scoring = found.stages
    assert (stage.done, stage.total, stage.in_flight) == (2, 10, ["c3", "c4"])
    assert stage.rate == pytest.approx(0.1, rel=1e-3) and stage.left_s == pytest.approx(80, rel=1e-3)
    assert (scoring.done, scoring.total) == (200, 400)
    assert (found.retried, found.preempted, found.dropped) == (1, 1, 4)
    text = "\n".join(lines(found, now))
    assert "2 of 10 classes, 0.1/s, about 80 s left" in text and "in flight: c3, c4" in text
    assert f"written by host {platform.node()}, pid {os.getpid()}, since 20" in text and "renewed 20 s ago" in text
    assert "retried 1, preempted 1, resumed 0; images dropped 4" in text


def test_a_run_whose_job_died(at_work):
    run, now = at_work
    assert read_status(run, now + STALE_S + 1).state == LOST
    plain = json.loads(filesystem.read_bytes(lease.path(run)))
    for changes, state in (({"machine": "elsewhere"}, RUNNING), ({"born": "1"}, LOST)):
        filesystem.write_atomic(lease.path(run), json.dumps(plain | changes).encode())
        assert read_status(run, now).state == state
    filesystem.remove_tree(lease.path(run))
    found = read_status(run, now)
    assert found.state == STOPPED and found.stages[0].rate is None and found.stages[0].in_flight == ["c3", "c4"]


def test_a_run_in_an_object_store(tmp_path):
    run = Run(f"memory://{tmp_path}/run")
    run.begin("distill", {"method": "random", "ipc": 1, "classes": ["a", "b"]}, seed=0)
    start_work(run, "distill", total=2, left=2)
    start_unit(run, "a", ["a"])
    found = read_status(run)
    assert found.stages[0].in_flight == ["a"] and (found.stages[0].done, found.stages[0].total) == (0, 2)


def test_runs_of_an_older_raydd_say_what_they_can(tmp_path):
    run = Run(str(tmp_path / "run"))
    run.begin("score", {"kind": "scores"}, seed=0)
    events.append(run, "unit_scored", unit="x", images=10, dropped=1)
    (stage,) = read_status(run).stages
    assert (stage.done, stage.total, stage.rate) == (None, None, None)
    assert any(line.startswith("score: begun 20") for line in lines(read_status(run)))


def test_names_from_data_do_not_reach_the_terminal(at_work, capsys):
    run, _ = at_work
    events.append(run, "unit_failed", name="\x1b[2Jevil", reason="\x07\nx")
    text = done("status", "--run", run.uri)
    assert "evil" in text and "\x1b" not in text and "\x07" not in text


def test_what_is_no_run_is_refused(tmp_path):
    assert "is no raydd run" in refused("status", "--run", tmp_path)
    run = Run(str(tmp_path))
    run.begin("distill", {}, seed=0)
    record = json.loads(filesystem.read_bytes(run.path("run.json")))
    for content, said in (
        (json.dumps(record | {"format": 99, "raydd": "9.9"}), "made by a newer raydd (9.9)"),
        (json.dumps(record | {"stages": []}), "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "damaged"),
        ("[]", "no JSON object"),
    ):
        filesystem.write_atomic(run.path("run.json"), content.encode())
        assert said in refused("status", "--run", tmp_path)


def test_records_of_no_sense_do_not_stop_it(at_work):
    run, now = at_work
    record = run.read()
    record["config"]["distill"] = ["x"]
    record["stages"]["evaluate"] = 7
    filesystem.write_atomic(run.path("run.json"), json.dumps(record).encode())
    for line in (b"[]\n", b'{"event": ["x"], "time": "now"}\n', b"\xff\n", b'{"event": "work_started"}\n'):
        with open(run.path("events.jsonl"), "ab") as file:
            file.write(line)
    found = read_status(run, now)
    assert [stage.name for stage in found.stages] == ["distill", "score"] and list(lines(found))


def test_a_status_is_json(at_work):
    run, now = at_work
    plain = json.loads(json.dumps(dataclasses.asdict(read_status(run, now))))
    assert plain["holder"]["renewed_ago"] == pytest.approx(20, abs=1)
