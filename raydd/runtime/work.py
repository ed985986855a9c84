"""What an executor needs to know of a piece of work, and of the machines: plain values, no Ray.

Two shapes of work cover everything raydd does. *Units* (a class to distill, a student to train) do not talk to each
other; each commits its own files and can tell whether it is done. *Streams* (scores of a source) read shards, decode
them on CPUs and compute on accelerators. Both run under `--executor ray` and `--executor local` with equal results.

Torch is imported where it is used: workers that only read and decode start in half the time without it.
"""

import concurrent.futures
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from raydd.errors import Unfinished, UserError, choose, redact
from raydd.runtime.heap import keep_freed

EXECUTORS = ("ray", "local")
# Read by the libraries' thread pools when they are loaded, so they hold for what is imported later.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Carriage return and "erase the line": progress on a terminal is rewritten in place.
CLEAR = "\r\x1b[2K"


def say(line: str) -> None:
    """Print one line at once, also into a file."""
    print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a running unit is given.

    device: where to compute. deadline: seconds left before this worker is taken away, or None. say: prints one line
    where the user looks, which a print in a worker does not. advanced: is told the step up to which the unit has saved
    its half-done state, so that a unit that crashes but gets on is not given up. rank, world: of the process group that
    computes the unit together, of which rank 0 alone writes.
    """

    device: str = "cpu"
    deadline: Callable[[], float | None] = lambda: None
    say: Callable[[str], None] = say
    advanced: Callable[[int], None] = lambda step: None
    rank: int = 0
    world: int = 1


class Unit(Protocol):
    """A picklable piece of work. `cost` orders units, longest first; the name is unique and stable."""

    name: str
    cost: float

    def is_done(self) -> bool: ...

    def run(self, context: Context) -> None: ...


# Fewer units than this are asked one by one, so that most runs need no threads, each with a connection of its own.
MANY, ASKED_AT_ONCE = 100, 16


def undone(units: Sequence[Unit]) -> list[Unit]:
    """The units that are not done, in order. Many are asked side by side: over a network each answer takes a while."""
    if len(units) < MANY:
        return [unit for unit in units if not unit.is_done()]
    with concurrent.futures.ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        done = pool.map(lambda unit: unit.is_done(), units)
        return [unit for unit, is_done in zip(units, done, strict=True) if not is_done]


# Called in the driver with (unit, event, facts) for what only an executor can see: `unit_failed`, `unit_retried`.
OnEvent = Callable[[Unit, str, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Where work runs; never part of a configuration's hash, because results do not depend on it."""

    # ray: the cluster the job runs in, or one started on this machine; local: this process, without Ray.
    executor: str = "ray"
    # Most workers side by side; None takes one per GPU, or one per CPU where there are none.
    workers: int | None = None
    # CPU threads per worker, the same in every executor, so that sums are taken in the same order.
    threads: int = 1

    def check(self) -> None:
        choose("executor", self.executor, EXECUTORS)
        for name, value in (("workers", self.workers), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a unit did not finish: one line for the user, and the traceback of an error that is not the user's."""

    reason: str
    trace: str | None = None


class WorkerTraceback(Exception):
    """The traceback of an error in a worker, as text: the cause of an `Unfinished`, shown with --debug."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def describe(error: BaseException) -> Failure:
    """An error that a unit raised, for people and for --debug."""
    if isinstance(error, UserError):
        return Failure(one_line(error))
    return Failure(f"{type(error).__name__}: {one_line(error)}", redact("".join(traceback.format_exception(error))))


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, and without secrets in URIs."""
    return redact(" ".join(str(error).split()))


def settle(threads: int) -> str:
    """Fix the number of threads of torch, and of libraries loaded later, in this process; name its device.

    One that computes on CPUs keeps its memory from here on (`raydd.runtime.heap`).
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        return "cuda"
    keep_freed()
    return "cpu"


def raise_unfinished(what: str, failures: Mapping[str, Failure], missing: Sequence[str]) -> None:
    """Raise `Unfinished` in one line if any unit failed or is missing."""
    if not failures and not missing:
        return
    name = next(iter(failures), None) or missing[0]
    failure = failures.get(name, Failure("its worker was lost too often"))
    more = len(set(failures) | set(missing)) - 1
    others = f" (and {more} more)" if more else ""
    message = f"{what} {name!r} failed: {failure.reason}{others}; the others are kept: run the same command again"
    raise Unfinished(message) from (WorkerTraceback(failure.trace) if failure.trace else None)


class Ticker:
    """Progress: what, done/total, rate.

    A job's log gets one plain line every `every` seconds; a terminal, one line that is rewritten every second.
    """

    def __init__(
        self,
        what: str,
        total: int,
        every: float = 30.0,
        say: Callable[[str], None] = say,
        terminal: bool | None = None,
    ) -> None:
        self.what, self.total, self.say = what, total, say
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self.every = min(every, 1.0) if self.terminal else every
        self.start = self.last = time.monotonic()
        self.done = 0

    def update(self, done: int, note: str = "") -> None:
        """Record progress; say so if it is time, or if the work has just been finished."""
        finished = done == self.total != self.done
        self.done, now = done, time.monotonic()
        if now - self.last < self.every and not finished:
            return
        self.last = now
        rate = done / max(now - self.start, 1e-9)
        line = f"{self.what}: {done}/{self.total} in {now - self.start:.0f} s ({rate:.2f}/s){note}"
        if not self.terminal:
            self.say(line)
        else:
            sys.stdout.write(f"{CLEAR}{line}" + ("\n" if finished else ""))
            sys.stdout.flush()
