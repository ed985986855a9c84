"""Small real work over Ray while workers, machines, drivers and whole clusters are killed at random.

A fake cluster on this machine: a head without CPUs, and nodes of one logical CPU each, every one a raylet of its own.
It is given the commands of a round, as a user would start them: `raydd distill dsco` on digits with a prior of random
weights (latents are scored, ten classes optimized), then `raydd evaluate` (students). Each round has another seed.
Every few seconds something is killed with SIGKILL; what and when is drawn from a key:

    worker   the process of one worker or scorer
    node     a raylet and all its workers; an empty machine comes back
    driver   the command; it is started again
    head     the whole cluster and the command at once; it is started again on a new cluster, with the same --out

When the time is over the round is left to end. Then each round is made again undisturbed, without Ray, and compared.

- kills: how many, and of which kind; seconds of the rounds beside those of the undisturbed ones;
- units_lost: shards, classes and students that are not there at the end;
- units_repeated: classes and students begun more often than once; half-done classes go on from their last save
  (`resumed`); shards, which take a moment, are counted when they are scored twice;
- identical: whether every score, image and student is the same as undisturbed.

    python benchmarks/faults.py [--minutes 15] [--seed 0] [--nodes 3]
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15", "OMP_NUM_THREADS": "1"}

import ray
import torch
from machine import finish, machine
from processes import processes
from ray.cluster_utils import Cluster

from raydd.keyed import numpy_rng
from raydd.store import events
from raydd.store.run import Run

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
KINDS = {"worker": 0.4, "node": 0.25, "driver": 0.25, "head": 0.1}
# Seconds between two kills. A group of workers takes ten or twenty to start again.
PAUSE_S = (10.0, 40.0)
POLL_S = 0.2
CLASSES, STUDENTS = 10, 4
RESULTS = ("latents/", "distilled/label", "evaluation/seeds/")
# Commands that end with an error though nobody killed them, in a row, before we give up.
PATIENCE = 5


def commands(prior: Path, out: Path, seed: int, executor: str) -> list[list[str]]:
    """What a round does."""
    distill = f"distill dsco --data digits --prior {prior} --ipc 4 --steps 20 --guidance 2 --iterations 20 --rounds 1"
    judge = f"evaluate --run {out} --val digits --protocol hard@40 --students convnet3 --seeds {STUDENTS} --no-flip"
    lines = (f"{distill} --out {out} --seed {seed}", judge)
    return [[sys.executable, "-m", "raydd.cli", *line.split(), "--executor", executor] for line in lines]


class Machines:
    """The fake cluster, and what can be killed of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.start()

    def start(self) -> None:
        head = NODE | {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(self.count)]

    def stop(self) -> None:
        for node in list(self.nodes):
            self.cluster.remove_node(node, allow_graceful=False)
        self.nodes = []
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def lose(self, place: int) -> None:
        """Kill one machine; another comes in its place."""
        self.cluster.remove_node(self.nodes.pop(place), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(**NODE))

    def workers(self) -> list[int]:
        """Processes that compute: children of our raylets, by Ray's titles for them."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.nodes}
        compute = ("ray::RayTrainWorker", "ray::MapWorker")
        return sorted(p.pid for p in processes().values() if p.parent in raylets and p.title.startswith(compute))


class Chaos:
    """Decides what is killed next and when, from a key."""

    def __init__(self, seed: int, machines: Machines) -> None:
        self.rng, self.machines = numpy_rng("faults", seed), machines
        self.start, self.kills = time.monotonic(), collections.Counter()
        self._plan()

    def _plan(self) -> None:
        self.next = time.monotonic() + float(self.rng.uniform(*PAUSE_S))
        self.kind = str(self.rng.choice(list(KINDS), p=list(KINDS.values())))

    def strike(self, driver: subprocess.Popen) -> None:
        """Kill what is due, if it is due; nothing where there is no such process now."""
        if time.monotonic() < self.next:
            return
        what = self.kind
        if self.kind == "worker":
            workers = self.machines.workers()
            if not workers:
                return
            victim = workers[int(self.rng.integers(len(workers)))]
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            what = f"worker, one of {len(workers)}"
        elif self.kind == "node":
            self.machines.lose(int(self.rng.integers(len(self.machines.nodes))))
        else:
            driver.kill()
            if self.kind == "head":
                self.machines.stop()
                self.machines.start()
        self.kills[self.kind] += 1
        print(f"{time.monotonic() - self.start:6.0f} s  {what}", flush=True)
        self._plan()


def disturbed(lines: list[list[str]], chaos: Chaos, until: float, log: Path) -> int:
    """Run the commands of a round to their end, under kills until then; how often a command was started."""
    starts = failures = 0
    for line in lines:
        while True:
            environment = os.environ | {"RAY_ADDRESS": chaos.machines.cluster.address}
            with log.open("a") as sink:
                driver = subprocess.Popen(line, env=environment, stdout=sink, stderr=sink)
            starts += 1
            try:
                while driver.poll() is None:
                    if time.monotonic() < until:
                        chaos.strike(driver)
                    time.sleep(POLL_S)
            finally:
                driver.kill()
                code = driver.wait()
            if code == 0:
                failures = 0
                break
            if code != -signal.SIGKILL:
                failures += 1
                print(f"{time.monotonic() - chaos.start:6.0f} s  the command gave up: {log.read_text()[-300:].strip()}")
            if failures == PATIENCE:
                raise RuntimeError(f"given up {PATIENCE} times:\n{log.read_text()[-3000:]}")
    return starts


def outcome(out: Path) -> dict[str, str]:
    """Hashes of a round's results, without the seconds that they took."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name.startswith(RESULTS):
            data = path.read_bytes()
            if path.suffix == ".json":
                facts = {key: value for key, value in json.loads(data).items() if "seconds" not in key}
                data = json.dumps(facts, sort_keys=True).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def work_of(out: Path) -> dict[str, int]:
    """Begun, finished and resumed units of a round, by its events and files."""
    told = events.read(Run(str(out)))
    begun = collections.Counter(event["name"] for event in told if event["event"] == "unit_started")
    scored = collections.Counter(event["unit"] for event in told if event["event"] == "unit_scored")
    there = len(list(out.glob("distilled/label=*/done.json"))) + len(list(out.glob("evaluation/seeds/*.json")))
    return {
        "units": CLASSES + STUDENTS,
        "lost": CLASSES + STUDENTS - there,
        "repeated": sum(begun.values()) - len(begun) + sum(scored.values()) - len(scored),
        "resumed": sum(event["event"] == "unit_resumed" for event in told),
    }


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a prior of random weights."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        line = f"train-prior --data digits --preset tiny --steps 1 --size 16 --out {folder}/prior --executor local"
        subprocess.run([sys.executable, "-m", "raydd.cli", *line.split()], check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0, help="of the kills; rounds count on from it")
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(f"{machine()}, ray {ray.__version__}; {load:.1f} busy processes at the start\n", flush=True)
    with workplace() as root:
        machines = Machines(args.nodes)
        chaos, rounds, starts = Chaos(args.seed, machines), [], 0
        until = chaos.start + 60 * args.minutes
        try:
            while time.monotonic() < until:
                out = root / f"rough-{len(rounds)}"
                rounds.append(out)
                lines = commands(root / "prior", out, args.seed + len(rounds), "ray")
                starts += disturbed(lines, chaos, until, root / "log")
        finally:
            machines.stop()
        rough_s = time.monotonic() - chaos.start
        same, calm_s = [], 0.0
        for i, out in enumerate(rounds, 1):
            calm, begin = root / f"calm-{i}", time.monotonic()
            for line in commands(root / "prior", calm, args.seed + i, "local"):
                subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            calm_s += time.monotonic() - begin
            same.append(outcome(calm) == outcome(out) and len(outcome(out)) > CLASSES + STUDENTS)
        work = collections.Counter()
        for out in rounds:
            work.update(work_of(out))
    print(f"\n{len(rounds)} rounds in {rough_s:.0f} s, undisturbed {calm_s:.0f} s; {dict(work)}; same: {same}\n")
    finish(
        "faults",
        kills=chaos.kills.total(),
        units_lost=work["lost"],
        units_repeated=work["repeated"],
        identical=all(same),
        kinds=dict(chaos.kills),
        units=work["units"],
        units_resumed=work["resumed"],
        rounds=len(rounds),
        starts=starts,
        seconds=rough_s,
        undisturbed_s=calm_s,
        load_average=[round(load, 2), round(os.getloadavg()[0], 2)],
        ray=ray.__version__,
    )


if __name__ == "__main__":
    main()
