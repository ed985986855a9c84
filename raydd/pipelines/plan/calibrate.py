"""Seconds per row of each operation of a plan: measured here in a bounded time, or read from a file made elsewhere.

An operation is run as the method runs it (`probes.py`), first on one row, then on more until it reaches its usual
batch or its share of the time; the median of what follows counts. One call that takes longer than its share is not cut
off, so the bound is soft where a single forward takes minutes.
"""

import dataclasses
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping

import torch

from raydd.errors import UserError
from raydd.pipelines.plan import probes, probes_match
from raydd.pipelines.plan.bench import Bench, Run
from raydd.pipelines.plan.cost import CPU, KINDS, Op, Work
from raydd.store import filesystem
from raydd.store.plain import parse_json

BUDGET_S = 20.0
GROWTH = 4
REPEATS = 5
FORMAT = "raydd calibration 1"
PROBES = probes.PROBES | probes_match.PROBES


@dataclasses.dataclass(frozen=True)
class Rate:
    """Seconds per row, and the rows of the calls that were timed."""

    seconds: float
    rows: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a machine takes for operations. device: `cpu` or `cuda`; threads: of one worker; image_bytes: of an encoded
    image by codec and size; file: where it was read, None where it was measured here."""

    device: str
    machine: str
    threads: int
    made: str
    rates: Mapping[Op, Rate]
    image_bytes: Mapping[str, float]
    file: str | None = None

    def seconds(self, work: Work) -> dict[str, float]:
        """Seconds of a work by kind, one row after the other."""
        total: dict[str, float] = {}
        for op, amount in work.items():
            total[op.kind] = total.get(op.kind, 0.0) + amount.rows * self.rates[op].seconds
        return total

    def split(self, work: Work) -> tuple[float, float]:
        """Seconds of a work on the device, and on a CPU."""
        by_kind = self.seconds(work)
        cpu = sum(value for kind, value in by_kind.items() if kind in CPU)
        return sum(by_kind.values()) - cpu, cpu

    def check(self, ops: Collection[Op]) -> None:
        """Raise `UserError` that names an operation without a rate."""
        for op in sorted(ops):
            if op not in self.rates:
                known = [other.of for other in self.rates if other.kind == op.kind]
                other = f"it has {known[0]}" if known else "it is of another method"
                raise UserError(
                    f"{self.file} has no seconds for {KINDS[op.kind]} with {op.of} ({other}): run this command with "
                    "--save-calibration FILE on the machine that it is about"
                )


def measure(bench: Bench, work: Work, threads: int, budget: float = BUDGET_S) -> Calibration:
    """Time every operation of a work on this machine, in about `budget` seconds beside opening the networks."""
    ops = sorted(work, key=lambda op: list(KINDS).index(op.kind))
    rates: dict[Op, Rate] = {}
    left = budget
    for done, op in enumerate(ops):
        run, batch = PROBES[op.kind](bench, op), max(1, round(work[op].rows / max(1, work[op].calls)))
        start = time.perf_counter()
        rate = time_rows(run, batch, left / (len(ops) - done), bench.wait)
        left = max(0.0, left - (time.perf_counter() - start))
        if op.kind.endswith("_back"):
            # Timed with its forward, which is counted by itself.
            forward = rates[Op(op.kind.removesuffix("_back"), op.of)]
            rate = Rate(max(0.0, rate.seconds - forward.seconds), rate.rows)
        rates[op] = rate
    machine = torch.cuda.get_device_name() if bench.device == "cuda" else platform.processor() or platform.machine()
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Calibration(bench.device, machine, threads, made, rates, bench.image_bytes())


def time_rows(run: Run, batch: int, seconds: float, wait: Callable[[], None]) -> Rate:
    """Median seconds per row of `run(rows)`, which returns the rows that it did, at up to `batch` rows."""

    def timed(rows: int) -> tuple[float, int]:
        start = time.perf_counter()
        done = run(rows)
        wait()
        return time.perf_counter() - start, done

    began, rows = time.perf_counter(), 1
    found = [timed(rows)]
    if found[0][0] < seconds:
        # What is slow at first is slow once.
        found = [timed(rows)]
    while rows < batch and found[0][0] * GROWTH < seconds / 3:
        rows = min(batch, rows * GROWTH)
        found = [timed(rows)]
    # What grew to these rows was their warm-up, unless there is no time for more.
    while len(found) <= REPEATS and time.perf_counter() - began + found[-1][0] < seconds:
        found.append(timed(rows))
    per_row = [took / done for took, done in found[min(1, len(found) - 1) :]]
    return Rate(statistics.median(per_row), found[-1][1])


def save(calibration: Calibration, uri: str) -> None:
    """Write a calibration for `load`."""
    plain = {name: getattr(calibration, name) for name in ("device", "machine", "threads", "made")}
    rates = [dataclasses.asdict(op) | dataclasses.asdict(rate) for op, rate in calibration.rates.items()]
    plain |= {"format": FORMAT, "image_bytes": dict(calibration.image_bytes), "rates": rates}
    filesystem.write_atomic(filesystem.absolute(uri), json.dumps(plain, indent=1).encode())


def load(uri: str) -> Calibration:
    """Read what `save` wrote. Raises `UserError` for anything else."""
    try:
        plain = parse_json(filesystem.read_bytes(filesystem.absolute(uri)))
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']!r}")
        return Calibration(
            **{name: str(plain[name]) for name in ("device", "machine", "made")},
            threads=int(plain["threads"]),
            rates={Op(r["kind"], r["of"]): Rate(float(r["seconds"]), int(r["rows"])) for r in plain["rates"]},
            image_bytes={str(name): float(size) for name, size in plain["image_bytes"].items()},
            file=uri,
        )
    except FileNotFoundError as error:
        raise UserError(f"--calibration {uri} does not exist: write one with --save-calibration FILE") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--calibration {uri} is none ({error}): give a file that 'raydd plan' wrote with --save-calibration"
        ) from error
