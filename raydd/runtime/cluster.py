"""Connecting to Ray: the cluster a job runs in, or one started on this machine.

A user sees our lines only: Ray's bars, banners and warnings go to its session folder (`/tmp/ray/session_latest/logs`),
and to the terminal as well with --debug or RAYDD_DEBUG=1.
"""

import contextlib
import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import ray

from raydd.errors import UserError
from raydd.runtime import metrics
from raydd.runtime._ray_private import configured_resources, lean
from raydd.runtime.work import Resources, one_line

DEBUG = "RAYDD_DEBUG"
# Where no address is given, Ray must not look for a cluster that somebody else left on this machine.
LOCAL = "local"
PROBE_S = 10.0
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ranks meet once, at the end: that some wait for long is no fault.
    "RAY_TRAIN_COLLECTIVE_WARN_INTERVAL_S": "600",
    # Ray's C++ core warns on the driver's stderr whatever the Python logging level; a fatal error still shows.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Seconds between the Train controller's looks at its workers (2 by default): each end of a group waits for one.
POLL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# Set where Ray was started for this driver alone.
ALONE = "RAYDD_OWN_RAY"
# Nobody takes this machine away with notice: that saves a process per worker group.
HERE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", ALONE: "1"}


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a job), else start Ray here; if connected, let idle actors go.

    Raises `UserError` if the cluster cannot be reached or refuses us.
    """
    debug = "--debug" in sys.argv or bool(os.environ.get(DEBUG))
    joined, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS", LOCAL)
    ours = not joined and address == LOCAL
    for name, value in (POLL | ({} if debug else QUIET) | (HERE if ours else {})).items():
        os.environ.setdefault(name, value)
    if joined:
        _release_actors()
    else:
        _start(address, debug)
    metrics.watch()
    if not debug:
        _hush()


def trainer(kind: type) -> type:
    """A trainer of Ray Train with no more processes per worker group than are needed on this cluster."""
    return lean(kind, alone=bool(os.environ.get(ALONE)))


def _hush() -> None:
    """Keep Ray's loggers off the terminal; their files in the session's folder keep everything."""
    for name in ("ray", "ray.data", "ray.train"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)


def _start(address: str, debug: bool) -> None:
    _probe(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    level = logging.INFO if debug else logging.ERROR
    try:
        with contextlib.nullcontext() if debug else _no_stderr():
            ray.init(address=address, logging_level=level, log_to_driver=debug, **options)
    except Exception as error:  # Ray raises bare ones too, where a node of its own is late on a busy machine
        if address == LOCAL:
            raise UserError(f"cannot start Ray here: {one_line(error)[:200]}; use --executor local") from error
        raise _cannot_join(address, error) from error


def _probe(address: str) -> None:
    """Refuse an address where nobody listens at once; Ray would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except OSError as error:
        raise _cannot_join(address, error) from error


def _cannot_join(address: str, error: Exception) -> UserError:
    return UserError(
        f"cannot join the Ray cluster at {address}: {one_line(error)[:200]}; check RAY_ADDRESS, set "
        "RAY_AUTH_MODE=token where the cluster wants a token, or use --executor local"
    )


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what C++ writes to file descriptor 2: Ray announces there that it will log less."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextlib.contextmanager
def cause() -> Iterator[None]:
    """Raise a `UserError` that was raised in a Ray worker as itself, here."""
    try:
        yield
    except Exception as error:
        message = find_message(error)
        if message is not None and not isinstance(error, UserError):
            raise UserError(message) from error
        raise


def find_message(error: BaseException) -> str | None:
    """The message of the `UserError` somewhere below an exception that Ray made of it; None if there is none.

    Ray hands on some causes as objects, and others (of constructors, of functions in Ray Data) as text only.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        this = waiting.pop()
        if this is None or id(this) in seen:
            continue
        seen.add(id(this))
        if isinstance(this, UserError):
            return str(this)
        waiting += [this.__context__, this.__cause__, getattr(this, "cause", None)]
        # Ray Train keeps one exception per rank that failed.
        waiting += getattr(this, "worker_failures", {}).values()
    names = "|".join(sorted(kind.__name__ for kind in _with_subclasses(UserError)))
    told = re.findall(rf"^raydd(?:\.\w+)*\.(?:{names}): (.+)$", str(error), re.MULTILINE)
    return told[-1] if told else None


def _with_subclasses(kind: type) -> set[type]:
    return {kind}.union(*(_with_subclasses(below) for below in kind.__subclasses__()))


def _release_actors() -> None:
    """Let go of actors that are no longer used: a pool's handles sit in reference cycles when its stream has ended.

    Until Python's collector happens to run, their processes would keep their CPUs, and a worker group that needs these
    would wait for them for ever, because a driver that waits collects nothing.
    """
    gc.collect()


def capacity() -> dict[str, float]:
    """CPUs and GPUs that the cluster has, or may grow to by its autoscaler's configuration."""
    have, may = ray.cluster_resources(), configured_resources()
    return {name: max(have.get(name, 0.0), may.get(name, 0.0)) for name in ("CPU", "GPU")}


def worker_count(resources: Resources, units: int) -> tuple[int, dict[str, float], bool]:
    """How many workers, with which resources each, and whether they hold a GPU."""
    most = capacity()
    gpus, cpus = int(most["GPU"]), max(1, int(most["CPU"]))
    places = gpus or max(1, cpus // resources.threads)
    count = max(1, min(resources.workers or places, places, units))
    each = {"GPU": 1.0, "CPU": 0.0} if gpus else {"CPU": float(min(resources.threads, cpus))}
    return count, each, bool(gpus)
