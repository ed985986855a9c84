"""A driver killed with -9 amid scoring: the same command goes on, and the scores are those of an undisturbed run."""

import collections
import os
import signal
import subprocess
import sys
import time

import pytest
from scoring import all_rows, score_source
from small_sources import write_imagefolder, write_teacher

from raydd.store import events, scores
from raydd.store.run import Run

CLASSES = 24
NAMES = "features,shapley,gradnorm"

pytestmark = pytest.mark.ray


def score(data, teacher, out):
    """Start `raydd score` as a user would, with a Ray of its own."""
    line = f"-m raydd.cli score --data {data} --teacher {teacher} --out {out} --scores {NAMES}"
    return subprocess.Popen(
        [sys.executable, *line.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_killed_driver(tmp_path, record_property):
    data = write_imagefolder(tmp_path / "data", CLASSES, per_class=12)
    teacher = write_teacher(tmp_path / "teacher", CLASSES, width=48)
    oracle = all_rows(score_source(data, teacher, tmp_path / "oracle", "local", NAMES.split(",")), CLASSES)
    run = Run(str(tmp_path / "run"))

    first = score(data, teacher, run.uri)
    deadline = time.monotonic() + 150
    while len(scores.committed_units(run)) < CLASSES // 4:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    told = [event["unit"] for event in events.read(run) if event["event"] == "unit_scored"]
    assert len(told) < CLASSES, "the kill came too late to show anything"

    second = score(data, teacher, run.uri)
    output = second.communicate(timeout=150)[0]
    assert second.returncode == 0, output
    times = collections.Counter(event["unit"] for event in events.read(run) if event["event"] == "unit_scored")
    resumed = next(event for event in events.read(run) if event["event"] == "scoring_resumed")
    recomputed = sum(count - 1 for count in times.values())
    figures = {"shards": CLASSES, "told": len(told), "kept": resumed["done"], "left": resumed["left"]}
    figures["recomputed"] = recomputed
    record_property("figures", figures)
    print(figures)
    assert recomputed == 0
    assert resumed["done"] >= len(told)
    assert resumed["done"] + resumed["left"] == CLASSES
    assert all(ours.equals(theirs) for ours, theirs in zip(all_rows(run, CLASSES), oracle))
    assert output.startswith("scored images: ")
