"""The parts of `scale.py` that need a cluster: units that sleep, losses of workers and nodes, and the queue alone.

Each part runs in a process of its own and prints its figures as one JSON line, last:

    python benchmarks/scale_cluster.py units WORKERS CLASSES SECONDS [--lose]
    python benchmarks/scale_cluster.py queue CLIENTS UNITS

What is real: Ray's scheduler, the Train worker group with one logical GPU per worker, the queue actor, and the run
directory (events, images, done-markers; local disk). What is not: a class computes by sleeping, and workers get a
stand-in for torch, so that many of them fit into the memory of one machine and start on few cores.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import ray
from processes import descendants, peak_mb

from raydd.keyed import hash64, numpy_rng
from raydd.runtime import cluster
from raydd.runtime.ray_units import open_queue, run_units
from raydd.runtime.work import Context, Resources, Ticker
from raydd.store import distilled, events
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run

CONFIG = "sleep"
# Sizes of classes: log-normal with this deviation, as class counts of ImageNet-21k are about.
SKEW = 0.7
NODES = 4
# Workers of a group begin within so many seconds of each other.
SETTLED_S = 5.0
# It leaves at once, because Ray Train looks for tensors in reports where torch is loaded.
STANDIN = """
import sys

class cuda:
    is_available = staticmethod(lambda: False)

def set_num_threads(count):
    sys.modules.pop("torch", None)
"""


@dataclasses.dataclass(frozen=True)
class Sleep:
    """A class that takes `cost` seconds of sleep and is then committed like any other."""

    uri: str
    classes: tuple[str, ...]
    label: int
    cost: float

    @property
    def name(self) -> str:
        return self.classes[self.label]

    def is_done(self) -> bool:
        return distilled.is_done(Run(self.uri), self.label, CONFIG)

    def run(self, context: Context) -> None:
        run, began = Run(self.uri), time.time()
        events.append(
            run, "unit_started", name=self.name, pid=os.getpid(), node=ray.get_runtime_context().get_node_id()
        )
        time.sleep(self.cost)
        image = DistilledImage(self.name.encode(), "synthetic", ())
        slept = time.time()
        distilled.commit_class(run, self.label, self.classes, [image], config_hash=CONFIG)
        facts = {"pid": os.getpid(), "began": began, "slept": slept, "committed": time.time()}
        events.append(run, "class_committed", name=self.name, **facts)


def costs(count: int, mean: float) -> list[float]:
    """Skewed seconds of `count` classes, of exactly this mean."""
    draws = numpy_rng("scale", count).lognormal(0.0, SKEW, count)
    return (draws * mean / draws.mean()).tolist()


@contextlib.contextmanager
def started(folder: Path, workers: int, nodes: int) -> Iterator[list[Callable[[], None]]]:
    """Ray with one logical GPU per worker, on this node or on `nodes` more; gives what loses each of these."""
    os.environ.update(cluster.QUIET | cluster.POLL)
    (folder / "standin").mkdir()
    (folder / "standin" / "torch.py").write_text(STANDIN)
    # By the environment and not Ray's `runtime_env`, which starts every worker through another process.
    os.environ["PYTHONPATH"] = str(folder / "standin")
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    memory = {"object_store_memory": 150 * 2**20}
    if not nodes:
        ray.init(address="local", num_cpus=2, num_gpus=workers, include_dashboard=False, **memory, **options)
        yield []
        ray.shutdown()
        return
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    added = [machines.add_node(num_cpus=1, num_gpus=workers // nodes, **memory) for _ in range(nodes)]
    ray.init(address=machines.address, **options)
    yield [functools.partial(machines.remove_node, node, allow_graceful=False) for node in added]
    ray.shutdown()
    machines.shutdown()


def run_part(folder: Path, workers: int, count: int, mean: float, lose: bool) -> dict:
    """Run `count` sleeping classes on `workers` workers; losing one worker, and later a node with a quarter of them."""
    run = Run(str(folder / "run"))
    classes = tuple(f"class {i:05d}" for i in range(count))
    units = [Sleep(run.uri, classes, i, cost) for i, cost in enumerate(costs(count, mean))]
    work = sum(unit.cost for unit in units)
    ideal = max(work / workers, max(unit.cost for unit in units))
    with started(folder, workers, NODES if lose else 0) as nodes:
        began = time.time()
        errors: list[BaseException] = []
        thread = threading.Thread(target=guarded, args=(units, folder, errors))
        thread.start()
        at = lose_some(run, thread, nodes, ideal) if lose else {}
        cpu = 0.0
        while thread.is_alive():
            thread.join(1.0)
            cpu = max(cpu, controller_seconds())
        took = time.time() - began
    if errors:
        raise errors[0]
    start = time.perf_counter()
    distilled.write_manifest(run, classes)
    manifest_s = time.perf_counter() - start
    log = events.read(run)
    done = [event for event in log if event["event"] == "class_committed"]
    begins = [event["time"] for event in log if event["event"] == "unit_started"]
    first, last = min(begins), max(event["committed"] for event in done)
    if lose:
        # As many as there were: all of them until a node was lost, then the others.
        left = workers - workers // NODES
        ideal = at["node"] - first + (work - workers * (at["node"] - first)) / left
    gaps = sorted(gaps_of(done))
    return {
        "workers": workers,
        "classes": len({event["name"] for event in done}),
        "mean_s": mean,
        "longest_s": max(unit.cost for unit in units),
        "ideal_s": ideal,
        "took_s": last - first,
        "efficiency": ideal / (last - first),
        "start_s": first - began,
        "end_s": began + took - last,
        "repeated": len(begins) - len(done),
        "gap_ms": 1000 * statistics.median(gaps),
        "gap_p99_ms": 1000 * gaps[int(0.99 * (len(gaps) - 1))],
        "commit_ms": 1000 * statistics.median(event["committed"] - event["slept"] for event in done),
        "controller_share": cpu / took,
        "driver_mb": peak_mb(os.getpid()),
        "manifest_s": manifest_s,
        "back_s": [at[f"{what}_back"] - at[what] for what in ("worker", "node")] if lose else [],
    }


def guarded(units: list[Sleep], folder: Path, errors: list[BaseException]) -> None:
    try:
        run_units(units, Resources(), "classes", storage=str(folder / "state"))
    except BaseException as error:
        errors.append(error)


def lose_some(run: Run, thread: threading.Thread, nodes: list, ideal: float) -> dict[str, float]:
    """Kill a worker after a quarter of the time, and a node after half of it, or once all are back; when that was."""
    at = {}
    first = wait_for(run, thread, lambda log: min((e["time"] for e in log if "pid" in e), default=None))
    while time.time() < first + ideal / 4:
        time.sleep(0.1)
    pids = sorted({e["pid"] for e in events.read(run) if e["event"] == "unit_started"})
    os.kill(pids[hash64("scale", "worker") % len(pids)], signal.SIGKILL)
    at["worker"] = time.time()
    at["worker_back"] = wait_for(run, thread, lambda log: first_of_others(log, pids))
    # Not while the group still starts again: those that are about to begin would be taken for the ones that come back.
    while time.time() < max(first + ideal / 2, at["worker_back"] + SETTLED_S):
        time.sleep(0.1)
    lose = nodes[hash64("scale", "node") % len(nodes)]
    pids = sorted({e["pid"] for e in events.read(run) if e["event"] == "unit_started"})
    at["node"] = time.time()
    lose()
    at["node_back"] = wait_for(run, thread, lambda log: first_of_others(log, pids))
    return at


def first_of_others(log: list[dict], pids: list[int]) -> float | None:
    """When the first unit was begun by a process that is none of these."""
    return min((e["time"] for e in log if e["event"] == "unit_started" and e["pid"] not in pids), default=None)


def wait_for(run: Run, thread: threading.Thread, look: Callable[[list[dict]], float | None]) -> float:
    """What `look` finds in the events, as soon as that is something."""
    while thread.is_alive():
        log = events.read(run)
        if log and (found := look(log)) is not None:
            return found
        time.sleep(0.2)
    raise RuntimeError("the run ended before its losses")


def gaps_of(done: list[dict]) -> Iterator[float]:
    """Seconds between the commit of a class and the next class of the same worker: the queue's two answers."""
    by_worker: dict[int, list[dict]] = {}
    for event in sorted(done, key=lambda event: event["began"]):
        by_worker.setdefault(event["pid"], []).append(event)
    for own in by_worker.values():
        for before, after in pairwise(own):
            yield after["began"] - before["committed"]


def controller_seconds() -> float:
    """CPU seconds of the Train controllers that descend from this process."""
    return sum(process.cpu_s for process in descendants() if "TrainController" in process.title)


class Client:
    """A worker that does nothing but ask the queue, as fast as it can or `rate` times per second."""

    def ask(self, queue: str, group: str, seconds: float, rate: float | None) -> list[float]:
        actor, me = ray.get_actor(queue), ray.get_runtime_context().get_actor_id()
        took, end = [], time.time() + seconds
        while (now := time.time()) < end:
            start = time.perf_counter()
            name = ray.get(actor.take.remote(group, me))
            took.append(time.perf_counter() - start)
            if name is None:
                break
            ray.get(actor.finish.remote(name))
            if rate:
                time.sleep(max(0.0, now + 1 / rate - time.time()))
        return took


def queue_part(folder: Path, clients: int, units: int) -> dict:
    """What the queue actor carries: takes per second flat out, and what a take costs at the rate of 1,000 GPUs."""
    figures = {}
    with started(folder, 0, 0):
        asking = [ray.remote(Client).options(num_cpus=0).remote() for _ in range(clients)]
        names = {f"class {i:06d}": 1.0 for i in range(units)}
        # 1,000 GPUs with classes of a minute each; and all that goes.
        for what, rate, seconds in (("paced", 1000 / 60 / clients, 10.0), ("flat", None, 8.0)):
            with open_queue(names, Ticker("units", units, every=3600), lambda *event: None) as (name, _):
                ray.get([client.ask.remote(name, "g0", 0.2, None) for client in asking])  # everybody knows the queue
                took = ray.get([client.ask.remote(name, "g0", seconds, rate) for client in asking])
            all_of = sorted(seconds for own in took for seconds in own)
            figures[f"{what}_per_s"] = len(all_of) / seconds
            figures[f"{what}_ms"] = 1000 * statistics.median(all_of)
            figures[f"{what}_p99_ms"] = 1000 * all_of[int(0.99 * (len(all_of) - 1))]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("units", "queue"))
    parser.add_argument("numbers", nargs="+", type=float)
    parser.add_argument("--lose", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.part == "queue":
            clients, units = map(int, args.numbers)
            figures = queue_part(Path(folder), clients, units)
        else:
            workers, count, mean = args.numbers
            figures = run_part(Path(folder), int(workers), int(count), mean, args.lose)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
