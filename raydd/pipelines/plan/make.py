"""`raydd plan`: what a distillation would do, on which machines, how long and how many bytes. It writes no run.

A request is checked exactly as `raydd distill` checks it, what a run already holds is left out, and the rest is counted
(`cost.py`). Seconds are counts times rates, measured on the spot or on another machine (`calibrate.py`), and
added up as the executors would: shards flow through workers while CPUs decode, units are taken longest first.

Guessed (ours, from runtime.md): what committing a part and starting Ray take. Not in the sum: transfers between
machines, retries, machines that are lost.
"""

import dataclasses
import heapq
import math
import os
import time

import torch

from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import Prepared, prepare
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.ld3m import Ld3m
from raydd.pipelines.method import Method
from raydd.pipelines.plan import calibrate
from raydd.pipelines.plan.bench import Bench
from raydd.pipelines.plan.bytes import Written, written
from raydd.pipelines.plan.calibrate import Calibration
from raydd.pipelines.plan.controls import count_control
from raydd.pipelines.plan.cost import Counting, Stage, add, stages, units_left
from raydd.pipelines.plan.dsco import count_dsco, count_samples
from raydd.pipelines.plan.infoutil import count_infoutil
from raydd.pipelines.plan.ld3m import count_ld3m, kept_steps
from raydd.pipelines.prior_samples import PriorSamples
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Resources, settle

COUNTS = {Control: count_control, Dsco: count_dsco, InfoUtil: count_infoutil, PriorSamples: count_samples}
# Guesses: writing what a part made; Ray's start with the first block of a stream, and the start of a worker group.
COMMIT_S, STREAM_START_S, GROUP_START_S = 0.05, 15.0, 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Where the seconds of a plan come from."""

    # Measure each operation on this machine, for about 20 s; without it and without a file there are counts only.
    calibrate: bool = True
    # What --save-calibration wrote on the machine that the plan is about, for example a GPU node.
    calibration: str | None = None
    # Where to write what was measured here: a path or URI.
    save_calibration: str | None = None

    def check(self) -> None:
        """Raise `UserError` where there is nothing to save."""
        if self.save_calibration and (self.calibration or not self.calibrate):
            raise UserError("--save-calibration writes what is measured here: leave out --calibration, --no-calibrate")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request that was counted. seconds of `checks` were measured; `workers` is the number that is planned for."""

    prepared: Prepared
    method: Method
    resources: Resources
    stages: tuple[Stage, ...]
    bytes: tuple[Written, ...]
    calibration: Calibration | None
    device: str
    checks: float
    workers: int

    @property
    def is_local(self) -> bool:
        return self.resources.executor == "local"

    def device_seconds(self) -> float:
        """Seconds of one accelerator, or of one CPU worker, for everything but reading, encoding and clustering."""
        return sum(self.calibration.split(stage.total())[0] for stage in self.stages)

    def by_kind(self) -> dict[str, float]:
        """Seconds per kind of operation, largest first."""
        total = self.calibration.seconds(add([stage.total() for stage in self.stages]))
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def wall(self, workers: int) -> dict[str, float]:
        """Seconds per stage on so many workers, checks among them; guesses included."""
        found = {"checks": self.checks}
        for stage in self.stages:
            if stage.parts:
                found[stage.name] = self._stream(stage, workers) if stage.streamed else self._queue(stage, workers)
        return found

    def _stream(self, stage: Stage, workers: int) -> float:
        workers = min(workers, len(stage.parts))
        device, reading = self.calibration.split(stage.total(workers))
        device += COMMIT_S * len(stage.parts)
        if self.is_local:
            # One thread reads ahead while this one computes.
            return max(device, reading) if (os.cpu_count() or 1) > 1 else device + reading
        if self.device == "cuda":
            # As many CPUs read as `readers` asks for.
            return STREAM_START_S + device / workers
        return STREAM_START_S + device / workers + reading / (workers * self.resources.threads)

    def _queue(self, stage: Stage, workers: int) -> float:
        """Units to whoever is free, longest first."""
        workers = min(workers, len(stage.parts))
        once = sum(self.calibration.split(stage.once))
        costs = sorted((sum(self.calibration.split(part.work)) + COMMIT_S for part in stage.parts), reverse=True)
        ends = [once] * workers
        for cost in costs:
            heapq.heapreplace(ends, ends[0] + cost)
        return max(ends) + (0.0 if self.is_local else GROUP_START_S)

    def readers(self, stage: Stage, workers: int) -> int:
        """CPUs that read and decode as fast as so many accelerators compute."""
        device, reading = self.calibration.split(stage.total())
        return max(1, math.ceil(min(workers, len(stage.parts)) * reading / max(device, 1e-9)))


def plan(options: DistillOptions, method: Method, resources: Resources, how: PlanOptions) -> Plan:
    """Check and count a request, and measure what is needed to tell its time. Raises `UserError` as `distill` does."""
    how.check()
    resources.check()
    given = calibrate.load(how.calibration) if how.calibration else None
    start = time.perf_counter()
    prepared = prepare(options, method)
    checks = time.perf_counter() - start
    device = given.device if given else settle(resources.threads)
    measured = given is None and how.calibrate
    left = units_left(prepared)
    found = stages(prepared, [unit for unit, _ in left], _counting(method, prepared, device, measured))
    work = add([stage.total() for stage in found])
    calibration, image_bytes = given, None
    if given is not None:
        given.check(work)
    elif measured and work:
        calibration = calibrate.measure(Bench(prepared.job, method, device), work, resources.threads)
        if how.save_calibration:
            calibrate.save(calibration, how.save_calibration)
    if how.save_calibration and not work:
        print("warning: nothing is left to do, so nothing was measured: --save-calibration has no effect")
    if calibration is not None and work:
        image_bytes = next((calibration.image_bytes.get(op.of) for op in work if op.kind == "save"), None)
    return Plan(
        prepared=prepared,
        method=method,
        resources=resources,
        stages=tuple(found),
        bytes=tuple(written(prepared, left, found, image_bytes)),
        calibration=calibration,
        device=device,
        checks=checks,
        workers=_workers(resources, device, given is not None),
    )


def _counting(method: Method, prepared: Prepared, device: str, measured: bool) -> Counting:
    if isinstance(method, Ld3m):
        # How much memory another machine has is not known: no step is taken to keep its activations there.
        return count_ld3m(method, prepared.job, device, kept_steps(method, prepared.job, device if measured else None))
    return COUNTS[type(method)](method, prepared.job, device)


def _workers(resources: Resources, device: str, elsewhere: bool) -> int:
    """As many as asked for, else what the executor would take on this machine; one of a machine that is elsewhere."""
    if resources.executor == "local":
        return 1
    if resources.workers or elsewhere:
        return resources.workers or 1
    places = torch.cuda.device_count() if device == "cuda" else (os.cpu_count() or 1) // resources.threads
    return max(1, places)
