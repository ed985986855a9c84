"""A plan in words: every figure is there, with where it is from; numbers are readable."""

import dataclasses

import pytest
from pipelines.plan.plan_counter import planned, work_of
from priors import write_tiny_prior

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.plan.calibrate import Calibration, Rate
from raydd.pipelines.plan.make import Plan, PlanOptions
from raydd.pipelines.plan.text import duration, lines, size
from raydd.runtime.work import Resources


@pytest.fixture(scope="module")
def dsco(tmp_path_factory, digits_tree) -> Plan:
    """A plan of DsCo, counted only."""
    prior = write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"), 8)
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path_factory.mktemp("x") / "run"), prior=prior, ipc=5)
    return planned(asked, Dsco("dsco", DscoConfig(steps=4, guidance=2.0)))


def on_gpus(found: Plan, workers: int, threads: int = 1) -> Plan:
    """The plan with rates of a GPU: a second per row, a tenth for what a CPU does."""
    rates = {op: Rate(0.1 if op.kind in ("read", "save") else 1.0, 1) for op in work_of(found)}
    calibration = Calibration("cuda", "a GPU", threads, "now", rates, {}, "gpu.json")
    resources = Resources(workers=workers)
    return dataclasses.replace(found, calibration=calibration, device="cuda", resources=resources, workers=workers)


def test_counts_alone(dsco):
    text = "\n".join(lines(dsco))
    assert "48 images of 3 classes to 5 per class at 8 px" in text and "no run is written" in text
    assert "latents: 3 shards" in text and "classes: 3 units" in text
    assert "denoiser forwards per class: 5 images x 4 steps x 2 for guidance" in text
    assert "noise is optimized at 3 steps, 80 iterations each" in text
    assert "120 in 12 calls" in text and "(guessed)" in text
    assert "time: not estimated" in text and "device hours" not in text


def test_another_machine(dsco):
    text = "\n".join(lines(on_gpus(dsco, 2)))
    # Half of the feature net's 49 rows per class and step are measured one at a time.
    assert "device hours" in text and "asks for, latents: 2 workers of one GPU and 1 CPUs" in text
    assert "asks for, classes: 2 workers of one GPU; more than 3 workers have nothing to do" in text
    assert "  2 workers" in text and "<- this request" in text
    assert "given by gpu.json, now: seconds per operation, reading included, on a GPU (cuda, 1 thread)" in text
    assert "at smaller batches than the run's" in text and "denoiser forwards at 1 of 10" in text
    assert "guessed: 0.05 s to write" in text and "to start a stream and workers" in text
    assert "was not measured" in "\n".join(lines(on_gpus(dsco, 2, threads=4)))


def test_cpu_workers(dsco):
    found = dataclasses.replace(on_gpus(dsco, 2), device="cpu")
    text = "\n".join(lines(found))
    assert "asks for, latents: 2 workers of 1 CPU, which read as well" in text


def test_measured_here(digits_tree, tmp_path):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), size=8, ipc=2)
    text = "\n".join(lines(planned(asked, Control("random", ControlConfig()), PlanOptions())))
    assert "measured here" in text and "asks for: this machine, without Ray" in text
    assert "counted, at a size measured on images of the source" in text
    assert "  one process " in text and "longest: " in text


def test_nothing_is_left(dsco):
    empty = tuple(dataclasses.replace(stage, parts=(), done=3) for stage in dsco.stages)
    text = list(lines(dataclasses.replace(dsco, stages=empty)))
    assert len(text) == 2 and "nothing is left to do" in text[1]


def test_numbers_for_people():
    seconds = (0, 0.001, 0.5, 119, 121, 7199, 7201, 172_801, 1e9)
    assert [duration(value) for value in seconds] == [
        "0 s",
        "<0.01 s",
        "0.5 s",
        "119 s",
        "2.02 min",
        "120 min",
        "2 h",
        "2 days",
        "11,574 days",
    ]
    counts = (0, 999, 1000, 999_600, 1.5e9, 2e15)
    assert [size(value) for value in counts] == ["0 B", "999 B", "1 kB", "1 MB", "1.5 GB", "2,000 TB"]
