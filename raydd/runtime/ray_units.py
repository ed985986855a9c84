"""Units on Ray Train: a worker group whose ranks pull units from one queue, longest first.

Units do not talk to each other, so there is no process group; ranks meet once, at the end. A unit is done when its own
files say so: a worker may be killed at any time, and a restarted group skips what is done. A unit that fails with an
error is reported while the others finish; one that kills its process again and again is given up
(`raydd.runtime.queue`). On a cluster of several nodes the group is elastic: it starts with what is there, grows up to
what the autoscaler may add, and goes on smaller after a loss. Many workers are several groups (`GROUP_WORKERS`) on
one queue, because a loss restarts all of its group.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydd.errors import UserError
from raydd.runtime import cluster, metrics
from raydd.runtime._ray_private import data_parallel_trainer, died_by_itself, is_single_node, preemption_deadline
from raydd.runtime.queue import UnitQueue
from raydd.runtime.storage import train_storage
from raydd.runtime.work import (
    Context,
    Failure,
    OnEvent,
    Resources,
    Ticker,
    Unit,
    describe,
    one_line,
    raise_unfinished,
    settle,
    undone,
)

POLL_S = 0.5
# An elastic group restarts as a whole to grow, so it does not look for room too often.
RESIZE_CHECK_S = 300
# The loss of one worker or machine stops all of its group for most of a minute, which a thousand spot machines in one
# group would hardly get out of (`benchmarks/scale.py`); groups of this size spend a few per cent of the time on it.
GROUP_WORKERS = 64
# Failures of a group that are forgiven before it is asked whether its units got on meanwhile.
MAX_FAILURES = 20


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one group among `of` that share a queue."""

    number: int
    of: int

    def share(self, workers: int) -> int:
        """How many of all workers are this group's, at least one."""
        return max(1, workers // self.of + (self.number < workers % self.of))


def run_units(
    units: Sequence[Unit], resources: Resources, what: str, on_event: OnEvent | None = None, *, storage: str
) -> None:
    """Run every unit that is not done on the cluster; raise `Unfinished` at the end if some failed.

    `storage` is a directory or URI that all nodes reach, for Ray Train's own state.
    """
    todo = {unit.name: unit for unit in undone(units)}
    if not todo:
        return
    cluster.connect()
    ticker = Ticker(what, len(todo))

    def on_news(name: str, event: str, facts: dict[str, Any]) -> None:
        if on_event:
            on_event(todo[name], event, facts)

    with open_queue({unit.name: unit.cost for unit in todo.values()}, ticker, on_news) as (name, queue):
        lost = Fit(name, queue, ray.put(todo), len(todo), resources, storage).run()
        failures = ray.get(queue.failed.remote())
    # `fit` returning is no proof: ranks may have returned early. The units' own files are.
    missing = [unit.name for unit in undone(list(todo.values()))]
    failures = {name: failures.get(name, lost) for name in missing if lost or name in failures}
    raise_unfinished(what, failures, [name for name in missing if name not in failures])


@dataclasses.dataclass(frozen=True)
class Fit:
    """Units, as one object of the cluster, and all that a worker group needs besides to run them.

    `name` is the queue's; `places`: how many units there are.
    """

    name: str
    queue: Any
    units: ray.ObjectRef
    places: int
    resources: Resources
    storage: str

    def run(self) -> Failure | None:
        """Run groups of at most `GROUP_WORKERS` side by side on the queue; a reason if one of them was given up."""
        count, _, _ = cluster.worker_count(self.resources, self.places)
        groups = math.ceil(count / GROUP_WORKERS)
        slots = [Slot(number, groups) for number in range(groups)]
        found: list[Failure | None] = [None] * groups

        def fill(slot: Slot) -> None:
            try:
                found[slot.number] = self.fill(slot)
            except Exception as error:  # of a thread: nobody else would tell it
                found[slot.number] = describe(error)

        # The first in this thread, where Ray hears Ctrl-C; the others end with the process.
        threads = [threading.Thread(target=fill, args=(slot,), daemon=True) for slot in slots[1:]]
        for thread in threads:
            thread.start()
        found[0] = self.fill(slots[0])
        for thread in threads:
            thread.join()
        return next((failure for failure in found if failure), None)

    def fill(self, slot: Slot) -> Failure | None:
        """Run groups in a slot until one ends well; the reason if one failed `MAX_FAILURES` times and no unit got on.

        Ray Train counts every failure of a long run together, and on a pool that loses machines often there are many:
        a run is given up only if they lead nowhere. Each progress is one of finitely many, so this ends.
        """
        for attempt in itertools.count():
            before = ray.get(self.queue.progress.remote())
            # A name of its own for each group: under a known one Ray would go on with what it kept of the one before.
            lost = self.group(slot, f"{self.name}-{slot.number}-{attempt}")
            if lost is None or ray.get(self.queue.progress.remote()) == before:
                return lost

    def group(self, slot: Slot, name: str) -> Failure | None:
        """Run one worker group, restarted after failures; the reason if Ray Train gave it up."""
        total, each, gpu = cluster.worker_count(self.resources, self.places)
        count = slot.share(total)
        threads = self.resources.threads
        trainer = cluster.trainer(data_parallel_trainer())(
            _rank,
            # By reference: the controller then need not import what units are made of.
            train_loop_config={"queue": self.name, "slot": slot.number, "threads": threads, "units": self.units},
            scaling_config=ray.train.ScalingConfig(
                num_workers=count if count == 1 or is_single_node() else (1, count),
                use_gpu=gpu,
                resources_per_worker=each,
                elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
            ),
            run_config=ray.train.RunConfig(
                name=name,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                **train_storage(self.storage),
            ),
        )
        try:
            with cluster.cause():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            return Failure(f"the workers failed, and no unit got on: {one_line(error)[:200]}", describe(error).trace)
        return None


def _rank(config: dict[str, Any]) -> None:
    """What every worker of the group runs."""
    metrics.watch()
    queue = ray.get_actor(config["queue"])
    group = ray.util.get_current_placement_group().id.hex()
    worker = ray.get_runtime_context().get_actor_id()
    context = Context(settle(config["threads"]), preemption_deadline, lambda line: ray.get(queue.tell.remote(line)))
    try:
        units = ray.get(config["units"])
    except ray.exceptions.ObjectLostError:
        raise
    except Exception as error:  # a package that is missing here: a new group would miss it too
        ray.get(queue.abort.remote(describe(error)))
        return
    while (name := ray.get(queue.take.remote(group, worker, config["slot"]))) is not None:
        try:
            if not units[name].is_done():
                units[name].run(dataclasses.replace(context, advanced=functools.partial(_advance, queue, name)))
        except Exception as error:
            ray.get(queue.fail.remote(name, describe(error)))
        else:
            ray.get(queue.finish.remote(name))
    ray.train.report({})


def _advance(queue: Any, name: str, step: int) -> None:
    ray.get(queue.advance.remote(name, step))


@contextlib.contextmanager
def open_queue(
    costs: dict[str, float], ticker: Ticker, on_event: Callable[[str, str, dict[str, Any]], None]
) -> Iterator[tuple[str, Any]]:
    """A queue as a named actor beside the driver, its name, and a thread that passes its news on."""
    name = f"raydd-{uuid.uuid4().hex[:8]}-{int(time.time())}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = (
        ray.remote(UnitQueue)
        .options(name=name, num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(costs, died_by_itself)
    )
    stopped = threading.Event()

    def pass_on(timeout: float = 10.0) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            news = ray.get(queue.news.remote(), timeout=timeout)
            for line in news.lines:
                ticker.say(line)
            for event in news.events:
                try:
                    on_event(*event)
                except UserError as error:  # storage that fails for a while must not end the news
                    ticker.say(f"not recorded: {event[1]} of {event[0]!r}: {error}")
            ticker.update(news.finished, f", {news.failed} failed" if news.failed else "")

    def watch() -> None:
        while not stopped.wait(POLL_S):
            pass_on()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield name, queue
    finally:
        stopped.set()
        thread.join(timeout=15)
        pass_on()
        ray.kill(queue)
