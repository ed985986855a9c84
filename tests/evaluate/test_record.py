"""An evaluation is read back as it was written, nan included; what cannot be read is named; stale is told."""

import json
import math

import pytest

from raydd.errors import UserError
from raydd.evaluate.record import Evaluation, SeedResult, file_name, read_evaluations, read_results, write_evaluation
from raydd.store import distilled
from raydd.store import filesystem as files
from raydd.store.run import Run


def evaluation(**changes) -> Evaluation:
    seeds = [
        SeedResult(
            seed=seed,
            last=last,
            best=last,
            top5=1.0,
            per_class=[0.5, math.nan],
            curve=[(10, 0.25), (20, last)],
            steps=20,
        )
        for seed, last in ((0, 0.5), (1, 0.75))
    ]
    fields = {
        "protocol": {"name": "noaug:hard", "epochs": 3},
        "protocol_hash": "ab12",
        "student": "torchvision/resnet18",
        "method": "random",
        "ipc": 10,
        "distill_seed": 4,
        "revision": 2,
        "validation": {"uri": "v", "fingerprint": "f", "count": 360},
        "classes": ["a", "b"],
        "labels": {"form": "hard"},
        "bytes": {"image": 3, "label": 0, "teacher": 0},
        "versions": {"torch": "2"},
        "seeds": seeds,
    }
    return Evaluation(**fields | changes)


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")


def test_what_is_written_is_read(run):
    uri = write_evaluation(run, evaluation())
    assert uri.endswith("evaluation/noaug_hard-torchvision_resnet18.json")
    (read,) = read_evaluations(run)
    assert math.isnan(read.seeds[0].per_class[1]) and read.seeds[1].curve == [(10, 0.25), (20, 0.75)]
    assert read.accuracies == {(4, 0): 0.5, (4, 1): 0.75} and repr(read) == repr(evaluation())


def test_the_bare_file_is_strict_json_with_the_summary(run):
    def refuse(constant):
        raise AssertionError(constant)

    plain = json.loads(files.read_bytes(write_evaluation(run, evaluation())), parse_constant=refuse)
    assert plain["mean"] == 0.625 and plain["n"] == 2 and plain["std"] == pytest.approx(math.sqrt(2 * 0.125**2))
    assert plain["seeds"][0]["per_class"] == [0.5, None]
    one = evaluation(seeds=evaluation().seeds[:1])
    assert json.loads(files.read_bytes(write_evaluation(run, one)), parse_constant=refuse)["std"] is None


def test_fields_of_a_newer_raydd_are_ignored(run):
    uri = write_evaluation(run, evaluation())
    plain = json.loads(files.read_bytes(uri))
    plain["seeds"][0]["novel"] = plain["novel"] = 1
    files.write_atomic(uri, json.dumps(plain).encode())
    assert len(read_evaluations(run)[0].seeds) == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"seeds": []}', b'{"seeds": [{"seed": 0}]}', b"\xff"])
def test_a_file_that_is_no_evaluation_is_named(run, content):
    files.write_atomic(run.path("evaluation", "hard-x.json"), content)
    with pytest.raises(UserError, match=r"hard-x\.json is no evaluation"):
        read_evaluations(run)


def test_stale_when_the_set_has_changed():
    assert not evaluation().is_stale({"revision": 2})
    assert evaluation().is_stale({"revision": 3}) and evaluation().is_stale({})


def test_results_need_a_run_and_a_set(run):
    with pytest.raises(UserError, match="no raydd run"):
        read_results(run)
    run.begin("distill", {}, seed=0)
    with pytest.raises(UserError, match="no distilled set"):
        read_results(run)
    distilled.write_manifest(run, ["a", "b"], method="full", ipc=10, seed=0, source={"uri": "s3://b/birds/"})
    results = read_results(run)
    assert results.evaluations == () and results.name == "run" and results.source_name == "birds"


def test_file_names_hold_no_separators():
    assert file_name("hard", "convnet3", "hard") == "hard-convnet3.json"
    assert file_name("soft", "convnet3", "online") == "soft-convnet3.json"
    assert file_name("soft", "convnet3", "views") == "soft+views-convnet3.json"
    assert "/" not in file_name("../x", "a/b", "hard") and ":" not in file_name("noaug:hard", "r", "hard")
