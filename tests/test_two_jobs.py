"""Two jobs on one run: every command that writes one is refused while another job does, and changes nothing.

The other job is a process of this machine that lives; once it is killed, the same command goes on at once.
"""

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import contents, done, refused

from raydd.store import events, filesystem, lease
from raydd.store.lease import Lease
from raydd.store.run import Run

LOCAL = ("--executor", "local")
SMALL = ("--data", "digits", "--size", 8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_teacher) -> Path:
    """A distilled set of the digits, not judged yet."""
    out = tmp_path_factory.mktemp("finished") / "run"
    done("distill", "random", "--data", "digits", "--teacher", digits_teacher, "--out", out, "--ipc", 1, *LOCAL)
    return out


@pytest.fixture
def rival():
    """A process that lives, and a function that makes it the holder of a run."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        def take(out: Path) -> None:
            now = time.time()
            names = {"owner": "rival", "host": platform.node(), "machine": lease.this_machine()}
            held = Lease(**names, pid=process.pid, born=lease.birth(process.pid), started=now, renewed=now)
            filesystem.write_atomic(lease.path(Run(str(out))), json.dumps(dataclasses.asdict(held)).encode())

        yield process, take
        process.kill()


NETWORK = ("--arch", "convnet3", "--width", 4)
JUDGE = ("--students", "convnet3", "--no-flip")
COMMANDS = {
    "train-teacher": ("--out", "OUT", *SMALL, *NETWORK, "--epochs", 1, "--early-epochs", 0, *LOCAL),
    "train-prior": ("--out", "OUT", *SMALL, "--preset", "tiny", "--steps", 1, *LOCAL),
    "train-experts": ("--out", "OUT", *SMALL, *NETWORK, "--count", 1, *LOCAL),
    "score": ("--out", "OUT", "--data", "digits", "--teacher", "TEACHER", "--scores", "loss", *LOCAL),
    "distill random": ("--out", "OUT", *SMALL, "--ipc", 1, *LOCAL),
    "distill full": ("--out", "OUT", *SMALL, "--ipc", 1),
    "dope": ("--run", "RUN", "--out", "OUT", "--per-class", 1, "--score", "loss", "--teacher", "TEACHER", *LOCAL),
    "evaluate": ("--run", "OUT", "--val", "digits", "--protocol", "hard@1", "--seeds", 1, *JUDGE, *LOCAL),
    "store-labels": ("--run", "OUT", "--protocol", "soft@1", *JUDGE),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_job_is_refused(command, finished, digits_teacher, rival, tmp_path):
    process, take = rival
    out = tmp_path / "out"
    if command in ("evaluate", "store-labels"):
        shutil.copytree(finished, out)
    take(out)
    before = contents(tmp_path)
    places = {"OUT": out, "RUN": finished, "TEACHER": digits_teacher}
    line = refused(*command.split(), *(places.get(word, word) for word in COMMANDS[command]))
    assert f"{out} is being written by another job (host {platform.node()}, pid {process.pid}, since 20" in line
    assert "wait until it ends, or stop it" in line
    assert contents(tmp_path) == before


def test_a_shared_table_is_refused_too(digits_teacher, rival, tmp_path):
    _, take = rival
    words = ("--data", "digits", "--teacher", digits_teacher, "--ipc", 1, "--mipc", 2, "--scores", tmp_path / "scores")
    done("distill", "rded", *words, "--out", tmp_path / "a", *LOCAL)
    (table,) = (tmp_path / "scores").iterdir()
    shutil.rmtree(table / "scores")
    take(table)
    assert f"{table} is being written" in refused("distill", "rded", *words, "--out", tmp_path / "c", *LOCAL)


def test_reading_is_nobodys_business(finished, rival, tmp_path):
    _, take = rival
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    take(run)
    assert "running: a job is at work" in done("status", "--run", run)
    done("export", "--run", run, "--out", tmp_path / "exported")
    done("report", "--run", run, "--out", tmp_path / "report.html")
    done("distill", "random", "--data", "digits", "--teacher", _teacher_of(run), "--out", run, "--ipc", 1, *LOCAL)


def _teacher_of(run: Path) -> str:
    return json.loads((run / "distilled" / "dataset.json").read_text())["labels"]["teacher"]


def test_a_killed_job_is_gone_on_with_at_once(rival, tmp_path):
    process, take = rival
    out = tmp_path / "run"
    take(out)
    command = ("distill", "random", "--out", out, *SMALL, "--ipc", 1, *LOCAL)
    refused(*command)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    assert "10 images" in done(*command)
    assert time.monotonic() - start < 30 and lease.read(Run(str(out))) is None
    assert events.read(Run(str(out)))[0]["event"] == "lease_taken_over"


def test_stages_of_one_job_do_not_refuse_each_other(digits_teacher, tmp_path):
    """Scores inside a distillation, then an evaluation of the same run."""
    words = ("--data", "digits", "--teacher", digits_teacher, "--ipc", 1, "--mipc", 2)
    done("distill", "rded", *words, "--out", tmp_path / "run", *LOCAL)
    judge = ("--val", "digits", "--protocol", "hard@1", "--seeds", 1, *JUDGE)
    done("evaluate", "--run", tmp_path / "run", *judge, *LOCAL)
    assert not (tmp_path / "run" / "state" / "lease.json").exists()
