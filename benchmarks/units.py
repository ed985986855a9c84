"""The class-sharded executor on Ray Train beside the local one, on the same units.

A unit computes for about a second on one thread (products of keyed matrices, in memory that it allocates once) and
commits one file. With convolutions, which allocate in their loop, units took 9 % less CPU time under Ray; we think that
is glibc's allocator, which treats threads (a Ray worker computes in one) otherwise than the main thread.

- overhead: what a unit costs under Ray with 1 worker over what it costs locally, minus 1, as medians. Both executors
  run at the same time, each in a process of its own, and their units take turns: unit 0 locally, unit 0 under Ray, unit
  1 locally and so on, so that drifts of the machine hit both alike. A unit's cost is the CPU time of its process from
  begin to commit (Ray's own threads in it included), plus the wall time from the commit before until it is called (the
  queue's answer, which neighbors on the machine slow down). The first unit, start and end are left out;
- scaling_2: units per second of wall time with 2 workers over 1, from the first begin to the last commit, each alone,
  the best of all turns. On a machine with other work it says how the scheduler shares: look at the load as well;
- identical: whether all made the same bytes.

    python benchmarks/units.py [--units 20] [--steps 35] [--turns 1]
"""

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import ray
import torch
from machine import finish, machine

from raydd.keyed import torch_rng
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources

POLL_S = 0.005
SIDE = 1024


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiplies matrices `steps` times, as soon as the file `after` is there; leaves the result, and when it ran."""

    index: int
    folder: str
    steps: int
    after: str | None = None

    @property
    def name(self) -> str:
        return f"{self.index:03d}"

    @property
    def cost(self) -> float:
        # Both executors begin with the costliest: in the order of the index.
        return float(-self.index)

    def path(self, suffix: str) -> Path:
        return Path(self.folder, f"{self.name}.{suffix}")

    def is_done(self) -> bool:
        return self.path("json").exists()

    def run(self, context: Context) -> None:
        called = time.time()
        self.path("called").touch()
        while self.after and not Path(self.after).exists():
            time.sleep(POLL_S)
        begin, cpu = time.time(), time.process_time()
        generator = torch_rng("units", self.index)
        x, weight = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
        product = torch.empty_like(x)
        for _ in range(self.steps):
            torch.mm(x, weight, out=product)
            torch.tanh(product.div_(SIDE**0.5), out=x)
        self.path("bin").write_bytes(x.numpy().tobytes())
        record = {"called": called, "begin": begin, "cpu": time.process_time() - cpu, "end": time.time()}
        # Renamed, because the other executor waits for the file and reads it whole.
        self.path("part").write_text(json.dumps(record))
        self.path("part").rename(self.path("json"))


def start(folder: Path, executor: str, workers: int, count: int, steps: int, other: Path | None) -> subprocess.Popen:
    """Run `count` units in a fresh process, in turns with those of `other` if it is given."""
    folder.mkdir()
    line = [sys.executable, __file__, "--measure", str(folder), executor, workers, count, steps, other or ""]
    return subprocess.Popen([str(part) for part in line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def measure(folder: str, executor: str, workers: int, count: int, steps: int, other: str) -> None:
    """What that process does."""
    units = []
    for i in range(count):
        # Ray begins when its first unit is called, the local executor waits for that.
        before = f"{i:03d}.json" if executor == "ray" else f"{i - 1:03d}.json" if i else "000.called"
        units.append(Work(i, folder, steps, f"{other}/{before}" if other else None))
    run_units(units, Resources(executor=executor, workers=workers), "units", storage=f"{folder}/state")


def read(process: subprocess.Popen, folder: Path) -> tuple[list[dict], list[str]]:
    """Records of all units in their order, and the hashes of their results."""
    complaint = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(complaint)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return records, [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.bin"))]


def in_turns(root: Path, count: int, steps: int) -> tuple[dict[str, float], list[list[str]]]:
    """Costs of the units of both executors, which take turns, and the hashes of both."""
    folders = {"local": root / "local", "ray": root / "ray"}
    others = {"local": folders["ray"], "ray": folders["local"]}
    running = {name: start(folders[name], name, 1, count, steps, others[name]) for name in folders}
    found = {name: read(process, folders[name]) for name, process in running.items()}
    figures = {}
    for name, (records, _) in found.items():
        figures[f"cpu_{name}"] = statistics.median(record["cpu"] for record in records[1:])
        figures[f"gap_{name}"] = statistics.median(b["called"] - a["end"] for a, b in pairwise(records))
        print(
            f"{name:5} {figures[f'cpu_{name}']:.3f} CPU s per unit, {1000 * figures[f'gap_{name}']:.1f} ms until the "
            "next one is called",
            flush=True,
        )
    ratios = [r["cpu"] / o["cpu"] for r, o in zip(found["ray"][0][1:], found["local"][0][1:])]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"ratios of CPU time: median {statistics.median(ratios):.3f}, middle half {low:.3f} to {high:.3f}\n")
    gaps = (figures["gap_ray"] - figures["gap_local"]) / figures["cpu_local"]
    overhead = {"overhead": statistics.median(ratios) - 1 + gaps, "overhead_queue": gaps}
    return overhead | {"ratio_low": low, "ratio_high": high} | figures, [hashes for _, hashes in found.values()]


def alone(root: Path, workers: int, count: int, steps: int) -> tuple[float, float, list[str]]:
    """Units per second under Ray with so many workers, seconds until the first one began, and the hashes."""
    began = time.time()
    records, hashes = read(start(root, "ray", workers, count, steps, None), root)
    first, last = min(record["begin"] for record in records), max(record["end"] for record in records)
    rate = count / (last - first)
    print(f"ray, {workers} worker(s): {rate:.2f} units/s, the first began after {first - began:.1f} s", flush=True)
    return rate, first - began, hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20)
    parser.add_argument("--steps", type=int, default=35, help="products of a unit")
    parser.add_argument("--turns", type=int, default=1, help="runs with 1 and with 2 workers")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        folder, executor, *numbers, other = args.measure
        measure(folder, executor, *map(int, numbers), other)
        return
    load = os.getloadavg()[0]
    print(f"{machine()}, ray {ray.__version__}; {load:.1f} busy processes at the start\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures, hashes = in_turns(root, args.units, args.steps)
        rates: dict[int, list[float]] = {1: [], 2: []}
        seconds = []
        for turn in range(args.turns):
            for workers in sorted(rates, reverse=bool(turn % 2)):
                rate, first, made = alone(root / f"{turn}-{workers}", workers, args.units, args.steps)
                rates[workers].append(rate)
                seconds.append(first)
                hashes.append(made)
    print()
    finish(
        "units",
        overhead=figures.pop("overhead"),
        scaling_2=max(rates[2]) / max(rates[1]),
        identical=all(len(made) == args.units and made == hashes[0] for made in hashes),
        **figures,
        start_s=min(seconds),
        units=args.units,
        load_average=[round(load, 2), round(os.getloadavg()[0], 2)],
        ray=ray.__version__,
    )


if __name__ == "__main__":
    main()
