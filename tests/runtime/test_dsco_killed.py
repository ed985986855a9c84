"""Noise optimization on Ray: the driver killed with -9 amid the classes, and the same set as one process makes."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from priors import write_tiny_prior

from raydd import cli
from raydd.store import events
from raydd.store.run import Run

pytestmark = pytest.mark.ray

SAMPLING = "--steps 12 --guidance 2 --iterations 3 --rounds 1 --ipc 2"


def hashes(out):
    return {path.parent.name: json.loads(path.read_text())["hash"] for path in out.rglob("done.json")}


def test_a_killed_driver_goes_on_with_the_classes_that_are_left(tmp_path, request):
    prior = write_tiny_prior(tmp_path / "prior", tuple("0123456789"))
    line = f"distill dsco --data digits --prior {prior} {SAMPLING}"
    local, run = tmp_path / "local", tmp_path / "run"
    cli.main(f"{line} --out {local} --executor local".split())

    def start():
        command = [sys.executable, "-m", "raydd.cli", *f"{line} --out {run} --workers 2".split()]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        request.addfinalizer(process.kill)
        return process

    first = start()
    deadline = time.monotonic() + 120
    while len(hashes(run)) < 2:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    # What its workers had in hand may still be committed before they notice.
    time.sleep(1)
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("done.json")}
    assert len(kept) < 10, "the kill came too late to show anything"

    second = start()
    output = second.communicate(timeout=150)[0]
    assert second.returncode == 0, output
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert hashes(run) == hashes(local) and len(hashes(run)) == 10
    made = collections.Counter(e["name"] for e in events.read(Run(str(run))) if e["event"] == "class_committed")
    print({"kept": len(kept), "made again": sum(made.values()) - 10})
    assert set(made.values()) == {1}
