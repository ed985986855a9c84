"""The command line gives the same distilled classes and students by every executor and number of workers."""

import json
from pathlib import Path

import pytest
from priors import write_tiny_prior

from raydd import cli

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

EXECUTORS = {"local": "--executor local", "ray1": "--workers 1", "ray3": "--workers 3"}


def raydd(line: str) -> None:
    cli.main(line.split())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("parity") / "teacher"
    recipe = "--arch convnet3 --width 8 --size 16 --epochs 3 --early-epochs 1 --no-flip"
    raydd(f"train-teacher --data digits --out {out} {recipe} --executor local")
    return out


def test_classes_and_students_are_identical(teacher, tmp_path, capfd):
    hashes, students = {}, {}
    for name, options in EXECUTORS.items():
        run = tmp_path / name
        raydd(f"distill infoutil --data digits --out {run} --teacher {teacher} --ipc 1 {options}")
        judged = f"--val digits --students convnet3 --protocol noaug:quick --seeds 2 --no-flip {options}"
        raydd(f"evaluate --run {run} {judged}")
        hashes[name] = {path.parent.name: json.loads(path.read_text())["hash"] for path in run.rglob("done.json")}
        students[name] = {path.name: _result(path) for path in (run / "evaluation" / "seeds").glob("*.json")}
    assert len(hashes["local"]) == 10
    assert len(students["local"]) == 2
    assert hashes["local"] == hashes["ray1"] == hashes["ray3"]
    assert students["local"] == students["ray1"] == students["ray3"]
    assert capfd.readouterr().err == ""


def _result(path: Path) -> dict:
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}


def test_doped_sets_are_identical(teacher, tmp_path):
    """Doping model, scores and choice: the same weights and the same originals by every executor."""
    from raydd.pipelines.dope import DopeOptions, dope
    from raydd.runtime.work import Resources

    base = tmp_path / "base"
    raydd(f"distill random --data digits --out {base} --teacher {teacher} --ipc 2 --executor local")
    plan = {"run": str(base), "per_class": 5, "scope": "global", "protocol": "quick_soft@2", "flip": False}
    made = [
        dope(DopeOptions(out=str(tmp_path / name), **plan), resources)
        for name, resources in (("local", Resources(executor="local")), ("ray2", Resources(workers=2)))
    ]
    assert made[0]["hashes"] == made[1]["hashes"] and sum(made[0]["doping"]["counts"].values()) == 50
    assert made[0]["doping"]["model"] == made[1]["doping"]["model"]


def test_learned_latents_are_identical(tmp_path):
    """LD3M in packs of four classes: images, latents, losses and step sizes, whoever measured those."""
    prior = write_tiny_prior(tmp_path / "prior", tuple("0123456789"), 8)
    quick = "--steps 2 --iterations 2 --heldout 1 --real-batch 8 --chunk 4 --matcher convnet1 --ipc 1 --size 8"
    made = {}
    for name, options in (("local", "--executor local"), ("ray2", "--workers 2")):
        raydd(f"distill ld3m --data digits --prior {prior} --out {tmp_path / name} {quick} {options}")
        learned = {path.name: path.read_bytes() for path in (tmp_path / name / "learned").glob("label=*")}
        rates = json.loads((tmp_path / name / "learned" / "rates.json").read_text())
        hashes = {
            path.parent.name: json.loads(path.read_text())["hash"] for path in (tmp_path / name).rglob("done.json")
        }
        made[name] = learned, rates, hashes
    assert made["local"] == made["ray2"]
    assert len(made["local"][0]) == len(made["local"][2]) == 10


def test_trajectories_are_matched_by_two_workers_as_by_one(tmp_path):
    """MTT learns all classes at once: two workers share out the images of its only unit."""
    experts = tmp_path / "experts"
    small = "--arch convnet1 --width 8 --size 8 --epochs 2 --batch 64 --count 1"
    raydd(f"train-experts --data digits --out {experts} {small} --executor local")
    quick = "--preset ld3m-pixels --loss mtt --iterations 3 --heldout 1 --student-steps 2 --max-start 1 --chunk 4"
    made = {}
    for name, options in (("local", "--executor local"), ("ray2", "--ddp 2")):
        run = tmp_path / name
        raydd(f"distill ld3m --data digits --out {run} --experts {experts} --ipc 1 --size 8 {quick} {options}")
        made[name] = {path.relative_to(run): path.read_bytes() for path in (run / "learned").iterdir()}
        made[name]["hashes"] = json.loads((run / "distilled" / "dataset.json").read_text())["hashes"]
    assert made["local"] == made["ray2"] and len(made["local"]) == 12


def test_a_class_is_redone_alone(teacher, tmp_path):
    """By one worker, in a set that one process made: the same bytes."""
    line = f"distill kmeans --data digits --out {tmp_path / 'run'} --teacher {teacher} --ipc 1"
    raydd(f"{line} --executor local")
    marker = tmp_path / "run" / "distilled" / "label=3" / "done.json"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}
    old = json.loads(marker.read_text())["hash"]
    raydd(f"{line} --classes 3 --force --workers 1")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}
    assert {path for path in after if after[path] != before[path]} == {marker}
    assert json.loads(marker.read_text())["hash"] == old


def test_a_teacher_is_trained_on_a_worker_and_heard_here(teacher, tmp_path, capfd):
    from raydd.models.checkpoint import read_info

    out = tmp_path / "teacher"
    recipe = "--arch convnet3 --width 8 --size 16 --epochs 3 --early-epochs 1 --no-flip"
    raydd(f"train-teacher --data digits --out {out} {recipe}")
    assert read_info(f"{out}/teacher.json").weights == read_info(f"{teacher}/teacher.json").weights
    printed = capfd.readouterr()
    assert "epoch 3/3" in printed.out
    assert printed.err == ""
