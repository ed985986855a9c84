"""How seconds add up on workers, by hand and against every schedule of a few units; what is measured and refused."""

import itertools
import os

import pytest
from pipelines.plan.plan_counter import LOCAL, planned, work_of
from priors import write_tiny_prior

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.plan.calibrate import Calibration, Rate
from raydd.pipelines.plan.cost import Amount, Op, Part, Stage
from raydd.pipelines.plan.make import COMMIT_S, GROUP_START_S, STREAM_START_S, Plan, PlanOptions, plan
from raydd.runtime.work import Resources

DENOISE, READ = Op("denoise", "prior a"), Op("read", "8 px")
RATES = {DENOISE: Rate(1.0, 1), READ: Rate(0.5, 1)}


def made(stages, device: str = "cpu", resources: Resources = LOCAL, workers: int = 1) -> Plan:
    """A plan of stages in which a denoiser forward takes a second and an image half of one to read."""
    calibration = Calibration(device, "machine", 1, "now", RATES, {})
    return Plan(None, None, resources, tuple(stages), (), calibration, device, 2.0, workers)


def units(*seconds: int, once: int = 0) -> Stage:
    parts = tuple(Part(str(i), {DENOISE: Amount(1, count)}) for i, count in enumerate(seconds))
    return Stage("classes", parts, once={DENOISE: Amount(1, once)} if once else {})


def shards(count: int, device: int, images: int) -> Stage:
    work = {DENOISE: Amount(1, device), READ: Amount(1, images)}
    return Stage("scores", tuple(Part(str(i), work) for i in range(count)), streamed=True)


def test_units_one_after_the_other():
    wall = made([units(3, 1, 2, once=4)]).wall(1)
    assert wall == {"checks": 2.0, "classes": pytest.approx(10 + 3 * COMMIT_S)}


@pytest.mark.parametrize("workers", [2, 3])
def test_units_on_workers(workers):
    """Longest first is never better than the best of all schedules, and at most a third worse (Graham, 1969)."""
    seconds = (7, 6, 5, 4, 3, 3)
    found = on_ray(units(*seconds, once=1), workers) - 1
    best = min(longest(seconds, places, workers) for places in itertools.product(range(workers), repeat=6))
    assert best <= found <= best * 4 / 3


def test_more_workers_than_units():
    assert on_ray(units(7, 3, once=1), 9) == pytest.approx(8 + COMMIT_S)


def on_ray(stage: Stage, workers: int) -> float:
    return made([stage], resources=Resources()).wall(workers)["classes"] - GROUP_START_S


def longest(seconds, places, workers: int) -> float:
    """When the last worker ends, if unit i goes to worker places[i]."""
    ends = [0.0] * workers
    for cost, place in zip(seconds, places):
        ends[place] += cost + COMMIT_S
    return max(ends)


def test_a_stream_reads_beside_computing():
    stage = shards(4, device=10, images=8)
    if (os.cpu_count() or 1) > 1:
        assert made([stage]).wall(1)["scores"] == pytest.approx(40 + 4 * COMMIT_S)
        assert made([shards(4, 10, 40)]).wall(1)["scores"] == pytest.approx(80)
    ray = Resources(workers=2)
    # CPU workers share their CPUs with reading; beside GPUs there are CPUs for it.
    assert made([stage], "cpu", ray).wall(2)["scores"] == pytest.approx(STREAM_START_S + (40 + 4 * COMMIT_S + 16) / 2)
    gpus = made([stage], "cuda", ray)
    assert gpus.wall(2)["scores"] == pytest.approx(STREAM_START_S + (40 + 4 * COMMIT_S) / 2)
    assert gpus.readers(stage, 2) == 1 and gpus.readers(stage, 3) == 2 and gpus.readers(stage, 64) == 2
    assert gpus.readers(shards(4, 10, 200), 4) == 40


def test_what_dominates():
    found = made([units(3), shards(2, 1, 20)])
    assert found.by_kind() == {"read": 20.0, "denoise": 5.0} and found.device_seconds() == 5
    assert list(found.by_kind()) == ["read", "denoise"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"), 8)


def test_it_measures_every_operation_and_saves_it_for_another_place(digits_tree, tmp_path, prior):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), prior=prior, ipc=2)
    method = Dsco("dsco", DscoConfig(steps=2, iterations=1, rounds=1, guidance=1.0))
    file = str(tmp_path / "here.json")
    here = planned(asked, method, PlanOptions(save_calibration=file))
    assert here.calibration.rates.keys() == work_of(here).keys() and here.calibration.file is None
    assert all(rate.seconds > 0 for rate in here.calibration.rates.values())
    there = plan(asked, method, Resources(workers=3), PlanOptions(calibration=file))
    assert there.calibration.rates == here.calibration.rates and there.workers == 3
    assert there.bytes == here.bytes and work_of(there) == work_of(here)
    assert not (tmp_path / "run").exists()
    # Another prior, another number of images: the rates of the first are refused, of the second they serve.
    other = write_tiny_prior(tmp_path / "other", ("0", "1", "2"), 16)
    elsewhere = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), prior=other, ipc=2)
    with pytest.raises(UserError, match=r"has no seconds for .*run this command with --save-calibration"):
        planned(elsewhere, method, PlanOptions(calibration=file))
    more = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), prior=prior, ipc=9)
    assert planned(more, method, PlanOptions(calibration=file)).device_seconds() > here.device_seconds()


def test_workers(digits_tree, tmp_path):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), size=8, ipc=2)
    method, how = Control("random", ControlConfig()), PlanOptions(calibrate=False)
    places = [plan(asked, method, resources, how).workers for resources in (LOCAL, Resources(), Resources(workers=7))]
    assert places[0] == 1 and places[1] >= 1 and places[2] == 7


def test_refusals(digits_tree, tmp_path):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "run"), size=8, ipc=2)
    method = Control("random", ControlConfig())
    for changes in ({"calibrate": False}, {"calibration": "x.json"}):
        with pytest.raises(UserError, match="--save-calibration writes what is measured here"):
            planned(asked, method, PlanOptions(save_calibration="y.json", **changes))
    with pytest.raises(UserError, match="--workers 0: must be at least 1"):
        plan(asked, method, Resources(workers=0), PlanOptions(calibrate=False))
