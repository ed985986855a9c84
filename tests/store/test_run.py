"""A run refuses another configuration and names what differs; --force removes exactly what the stage made; run.json is
never half written."""

import json

import pytest

from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.run import FORMAT, Run


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    uri = str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run"
    return Run(uri)


def test_begin_and_end_are_recorded(run):
    digest = run.begin("distill", {"ipc": 10}, seed=3)
    run.end("distill", seconds=2.0)
    record = run.read()
    assert record["config"]["distill"] == {"ipc": 10} and record["seeds"]["distill"] == 3
    assert record["stages"]["distill"]["hash"] == digest and record["stages"]["distill"]["seconds"] == 2.0
    assert record["stages"]["distill"]["ended"] is not None and record["versions"]["torch"]


def test_same_configuration_goes_on(run):
    assert run.begin("distill", {"ipc": 10}, seed=0) == run.begin("distill", {"ipc": 10}, seed=0)


def test_other_configuration_is_refused_with_the_difference(run):
    run.begin("distill", {"ipc": 10, "options": {"mipc": 300}}, seed=0)
    with pytest.raises(UserError, match=r"options\.mipc: 300 -> 100.*--force") as refusal:
        run.begin("distill", {"ipc": 10, "options": {"mipc": 100}}, seed=0)
    assert "ipc: 10" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert run.read()["config"]["distill"]["options"] == {"mipc": 300}


def test_stages_have_configurations_of_their_own(run):
    run.begin("score", {"batch": 1}, seed=0)
    run.begin("distill", {"ipc": 1}, seed=0)
    assert set(run.read()["config"]) == {"score", "distill"}


def test_force_discards_what_the_stage_made_and_its_facts(run):
    run.begin("score", {"batch": 1}, seed=0)
    run.begin("distill", {"ipc": 1}, seed=0)
    run.end("distill", seconds=5)
    for name in ("scores/label=0/a.parquet", "distilled/dataset.json", "evaluation/hard-x.json"):
        files.write_atomic(run.path(*name.split("/")), b"x")
    run.begin("distill", {"ipc": 2}, seed=0, force=True)
    assert files.exists(run.path("scores", "label=0", "a.parquet"))
    # A new set counts revisions from 1 again: evaluations of the old one would no longer look stale.
    assert not files.exists(run.path("distilled", "dataset.json"))
    assert not files.exists(run.path("evaluation", "hard-x.json"))
    assert "seconds" not in run.read()["stages"]["distill"]


def test_absent_and_newer_runs_are_user_errors(run):
    with pytest.raises(UserError, match=r"no run\.json"):
        run.read()
    files.write_atomic(run.path("run.json"), json.dumps({"format": FORMAT + 1, "raydd": "9.9"}).encode())
    with pytest.raises(UserError, match=r"9\.9.*upgrade"):
        run.read()


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    run = Run(str(tmp_path / "run"))
    run.begin("distill", {"ipc": 1}, seed=0)
    before = run.read()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run.end("distill", seconds=1)
    assert run.read() == before
    assert files.list_files(run.uri) == ["run.json"]
