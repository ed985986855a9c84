"""The command line from source to report, and its answers to wrong input: one line, exit code 2, nothing changed."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import done, raydd, refused, snapshot
from PIL import Image

from raydd import cli
from raydd.commands.distill import METHODS
from raydd.store import distilled
from raydd.store.run import Run

LOCAL = ("--executor", "local")
MADE = ("infoutil", "rded", "random", "kmeans", "herding")


@pytest.fixture(scope="module")
def flow(tmp_path_factory, digits_teacher):
    """Everything a person does after training a teacher, on the digits, one student each."""
    root = tmp_path_factory.mktemp("flow")
    for method in MADE:
        distill(root / method, method, digits_teacher, "--scores", root / "scores")
    done("distill", "full", "--data", "digits", "--out", root / "full", "--ipc", 1, "--teacher", digits_teacher)
    evaluate(*(root / name for name in (*MADE, "full")))
    return root


def distill(out: Path, method: str, teacher: str, *more: object) -> str:
    where = ("--data", "digits", "--out", out, "--teacher", teacher, "--mipc", 20)
    return done("distill", method, *where, "--ipc", 1, *LOCAL, *more)


def evaluate(*runs: Path) -> str:
    how = ("--val", "digits", "--students", "convnet3", "--protocol", "hard@2,soft@2", "--seeds", 1, "--no-flip")
    return done("evaluate", "--run", *runs, *how, *LOCAL)


def test_every_method_makes_its_set(flow):
    for method in MADE:
        manifest = json.loads((flow / method / "distilled" / "dataset.json").read_text())
        assert manifest["images"] == 10 and manifest["method"] == method and manifest["codec"] == "png"


def test_the_same_commands_again_do_nothing(flow, digits_teacher):
    before = snapshot(flow)
    for method in MADE:
        assert "10 images" in distill(flow / method, method, digits_teacher, "--scores", flow / "scores")
    table = evaluate(*(flow / name for name in (*MADE, "full")))
    assert snapshot(flow) == before
    assert all(method in table for method in MADE) and "hard labels" in table and "online labels" in table


def test_one_class_again_leaves_the_others(flow, digits_teacher, tmp_path):
    run = tmp_path / "rded"
    shutil.copytree(flow / "rded", run)
    before = snapshot(run / "distilled")
    out = distill(run, "rded", digits_teacher, "--scores", flow / "scores", "--classes", "3,7", "--force")
    after = snapshot(run / "distilled")
    changed = {name.split("/")[0] for name in before if after[name] != before[name]}
    assert changed == {"label=3", "label=7", "dataset.json"} and "revision 3" in out
    assert all(after[name][1] == before[name][1] for name in before if name.endswith(".parquet"))


def test_compare_and_report(flow, tmp_path):
    runs = [flow / name for name in (*MADE, "full")]
    table = done("compare", *runs, "--out", tmp_path)
    assert table.count("(ceiling)") == 2 and "report: " in table
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "herding" in page
    assert f"report: {flow}/rded/report.html" in done("report", "--run", flow / "rded")
    (flow / "rded" / "report.html").unlink()


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "huggingface"])
def test_exports_can_be_distilled_again(flow, tmp_path, format):
    out = tmp_path / format
    assert "10 images as" in done("export", "--run", flow / "random", "--out", out, "--format", format)
    before = snapshot(out)
    done("export", "--run", flow / "random", "--out", out, "--format", format)
    assert snapshot(out) == before
    done("distill", "random", "--data", out, "--out", tmp_path / "again", "--ipc", 1, "--size", 16, *LOCAL)
    for label in range(10):
        once, twice = (distilled.read_class(Run(str(run)), label) for run in (flow / "random", tmp_path / "again"))
        pixels = [np.asarray(Image.open(io.BytesIO(image.data))) for image in (*once, *twice)]
        assert (pixels[0] == pixels[1]).all()


def test_stored_views_give_the_online_accuracy(flow, tmp_path):
    run = tmp_path / "random"
    shutil.copytree(flow / "random", run)
    online = json.loads((run / "evaluation" / "soft_2-convnet3.json").read_text())
    how = ("--students", "convnet3", "--protocol", "soft@2", "--no-flip")
    assert "MB of labels" in done("store-labels", "--run", run, *how, "--codec", "fp32")
    done("evaluate", "--run", run, "--val", "digits", *how, "--seeds", 1, "--labels", "views", *LOCAL)
    views = json.loads((run / "evaluation" / "soft_2+views-convnet3.json").read_text())
    assert views["labels"]["form"] == "views" and views["mean"] == online["mean"]


def test_train_and_score(tmp_path):
    out = tmp_path / "teacher"
    train = ("--data", "digits", "--out", out, "--arch", "convnet3", "--width", 4, "--size", 8, "--no-flip")
    assert "top-1" in done("train-teacher", *train, "--epochs", 3, "--early-epochs", 1, *LOCAL)
    before = snapshot(out)
    done("train-teacher", *train, "--epochs", 3, "--early-epochs", 1, *LOCAL)
    assert snapshot(out) == before
    assert "epochs: 3 -> 4" in refused("train-teacher", *train, "--epochs", 4, "--early-epochs", 1, *LOCAL)
    score = ("score", "--data", "digits", "--teacher", out, "--out", tmp_path / "run", "--scores", "features,loss")
    assert "features, loss of 1438 images" in done(*score, *LOCAL)
    before = snapshot(tmp_path / "run")
    done(*score, *LOCAL)
    assert snapshot(tmp_path / "run") == before
    assert "unknown score 'lss': did you mean 'loss'" in refused(*score[:-1], "lss", *LOCAL)


@pytest.fixture
def bad(tmp_path) -> Path:
    """Things that are no source, no teacher or no run."""
    root = tmp_path / "bad"
    (root / "empty").mkdir(parents=True)
    (root / "text").mkdir()
    (root / "text" / "readme.txt").write_text("no image")
    picture = Image.new("RGB", (8, 8))
    for folder in ("one/only", "flat", "two/ant", "two/bee"):
        (root / folder).mkdir(parents=True)
        picture.save(root / folder / "a.png")
    (root / "outside" / "ant").mkdir(parents=True)
    picture.save(root / "outside" / "ant" / "a.png")
    (root / "outside" / "classes.txt").write_text("bee\ncat\n")
    (root / "notes.safetensors").write_bytes(b"not a checkpoint")
    with open(root / "pickle.pth", "wb") as file:
        pickle.dump({"hook": os.system}, file)
    torch.save({"weights": object()}, root / "objects.pth")
    return root


SOURCES = [
    ("nowhere", "does not exist"),
    ("empty", "is empty or no directory"),
    ("text", "is no source: expected class folders"),
    ("flat", "no class folders"),
    ("one", "has one class ('only')"),
    ("outside", "none of 1 images has a usable label"),
]


@pytest.mark.parametrize(("name", "message"), SOURCES, ids=[name for name, _ in SOURCES])
def test_bad_sources(bad, tmp_path, name, message):
    line = refused("distill", "random", "--data", bad / name, "--out", tmp_path / "run", "--size", 8, *LOCAL)
    assert message in line and str(bad / name) in line and not (tmp_path / "run").exists()


WORDS = [
    (("distil",), "unknown command 'distil': did you mean 'distill'"),
    (("distill", "infoutl"), "unknown method 'infoutl': did you mean 'infoutil'"),
    (("distill", "infoutil", "--preset", "papr"), "unknown preset 'papr': did you mean 'paper'"),
    (("distill", "infoutil", "--preset=papr"), "unknown preset 'papr'"),
    (("distill", "random", "--data", "digits"), "Missing from raydd distill random: --out"),
    (("distill", "random", "--data", "digits", "--out", "x", "--ipc", "ten"), "--ipc: invalid literal"),
    (("distill", "random", "--data", "digits", "--out", "x", "--icp", "1"), "--icp"),
    (("distill", "random", "--data", "digits", "--out", "x", "--size", "8", "--executor", "slurm"), "unknown executor"),
    (("compare",), "compare needs at least one run"),
    (("compare", "/nowhere"), "/nowhere is no raydd run"),
    (("report", "--run", "/nowhere"), "/nowhere is no raydd run"),
    (("export", "--run", "/nowhere", "--out", "x"), "/nowhere holds no distilled set"),
    (("distill", "random", "--data", "foo://x", "--out", "y"), "unknown URI scheme 'foo'"),
    (("distill", "random", "--data", "http://127.0.0.1:9/set", "--out", "y"), "cannot reach http://127.0.0.1:9/set"),
]


@pytest.mark.parametrize(("args", "message"), WORDS, ids=[message for _, message in WORDS])
def test_bad_words(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*args)
    assert not list(tmp_path.iterdir())


NUMBERS = [
    (("--ipc", 0), "--ipc 0: must be at least 1 image per class"),
    (("--ipc", 200), "--ipc 200 needs 200 source images per class"),
    (("--size", 0), "--size 0: must be at least 1"),
    (("--batch", 0), "--batch 0: must be at least 1"),
    (("--classes", "tenn"), "unknown class 'tenn'"),
    (("--threads", 0), "--threads 0: must be at least 1"),
]


@pytest.mark.parametrize(("options", "message"), NUMBERS, ids=[message for _, message in NUMBERS])
def test_bad_numbers(options, message, tmp_path):
    base = ("--data", "digits", "--out", tmp_path / "run", "--size", 8)
    assert message in refused("distill", "random", *base, *LOCAL, *options)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration(flow, digits_teacher):
    before = snapshot(flow)
    base = ("--data", "digits", "--out", flow / "rded", "--teacher", digits_teacher, "--mipc", 20, *LOCAL)
    shared = ("--scores", flow / "scores")
    line = refused("distill", "rded", *base, *shared, "--ipc", 1, "--direction", "top")
    assert 'options.select.direction: "bottom" -> "top"' in line and "--force" in line
    assert "ipc: 1 -> 2" in refused("distill", "rded", *base, *shared, "--ipc", 2)
    assert 'method: "rded" -> "infoutil"' in refused("distill", "infoutil", *base, *shared, "--ipc", 1)
    assert snapshot(flow) == before


def edited(teacher: str, out: Path, **changes: object) -> Path:
    """A copy of a teacher with other facts in its JSON files."""
    shutil.copytree(teacher, out)
    for name in ("teacher.json", "early.json"):
        (out / name).write_text(json.dumps(json.loads((out / name).read_text()) | changes))
    return out


def test_bad_teachers(bad, tmp_path, digits_teacher):
    base = ("distill", "infoutil", "--data", "digits", "--out", tmp_path / "run", "--ipc", 1, *LOCAL)
    swapped = edited(digits_teacher, tmp_path / "swapped", classes=list("1023456789"))
    named = edited(digits_teacher, tmp_path / "named", classes=[])
    cases = [
        ((), "no --size and no --teacher"),
        (("--size", 16), "infoutil needs a teacher: add --teacher DIR"),
        (("--teacher", "/nowhere"), "no teacher in /nowhere"),
        (("--teacher", swapped), "teacher output 0 is '1' but class 0 of the source is '0'"),
        (("--teacher", digits_teacher, "--size", 32), "works at 16 px but the images have 32 px"),
        (("--teacher", bad / "notes.safetensors", "--teacher-arch", "convnet3"), "is not a safetensors file"),
        (("--teacher", bad / "pickle.pth", "--teacher-arch", "convnet3"), "without running code from it"),
        (("--teacher", bad / "objects.pth", "--teacher-arch", "convnet3"), "without running code from it"),
        (("--teacher", bad / "notes.safetensors"), "is not a safetensors file"),
        (("--teacher", digits_teacher, "--data", bad / "two"), "teacher has 10 outputs but the source has 2 classes"),
        (("--teacher", named, "--data", bad / "two"), "teacher has 10 outputs but the source has 2 classes"),
    ]
    for options, message in cases:
        assert message in refused(*base, *options), message
        assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback():
    outcome = raydd("--debug", "distil")
    assert outcome.code == 2 and "Traceback" in outcome.err and "unknown command 'distil'" in outcome.err


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupt)
    outcome = raydd("distill")
    assert outcome.code == 130 and outcome.err == "interrupted: run the same command again to go on\n"


def test_help_names_every_command_and_method():
    overview = done("--help")
    assert done() == overview and all(f"  {name} " in overview for name in cli.COMMANDS)
    assert all(f"  {name} " in done("distill", "--help") for name in METHODS)
    assert re.fullmatch(r"\d+\.\d+\S*\n", done("--version"))


@pytest.mark.parametrize("command", [*cli.COMMANDS, *(f"distill {method}" for method in METHODS)])
def test_every_option_is_explained(command):
    """Between an option and its default stands at least one sentence."""
    if command == "distill":
        return
    text = re.sub(r"[\s│─╭╮╰╯]+", " ", done(*command.split(), "--help"))
    options = re.split(r" (?=--[a-z])", text)[1:]
    bare = [option for option in options if re.fullmatch(r"--\S+( \S+)? \(default: .*", option)]
    assert len(options) > 1 and not bare


def test_a_preset_shows_its_values_as_defaults():
    text = " ".join(done("distill", "infoutil", "--preset", "paper", "--help").split())
    assert "(default: captum)" in text and "(default: border_windows)" not in text


def test_help_does_not_wait_for_torch():
    code = "import sys; from raydd.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def mounted(path: Path, size: str) -> bool:
    """Mount a tiny disk in memory, where this process may."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_is_really_full(tmp_path, digits_teacher):
    disk = tmp_path / "disk"
    if not mounted(disk, "256k"):
        pytest.skip("needs the right to mount a file system")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(200 << 10))
        base = ("distill", "rded", "--data", "digits", "--teacher", digits_teacher, "--mipc", 20, "--ipc", 4, *LOCAL)
        assert "disk full" in refused(*base, "--out", disk / "run")
        ballast.unlink()
        done(*base, "--out", disk / "run")
        done(*base, "--out", tmp_path / "run")
        made, wanted = (json.loads((root / "run/distilled/dataset.json").read_text()) for root in (disk, tmp_path))
        assert made["hashes"] == wanted["hashes"] and len(made["hashes"]) == 10
    finally:
        subprocess.run(["umount", str(disk)], check=True)
