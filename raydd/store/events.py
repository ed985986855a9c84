"""`events.jsonl`: one line per unit started, committed, retried, preempted or failed; it makes a resume explainable.

On a local disk lines are appended (one short write each, so several processes may share the file). Object stores
cannot append: there each event, or `Batch` of them, is a small object under `state/events/`, folded into
`events.jsonl` by `fold`.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from raydd.errors import redact
from raydd.store import filesystem as files
from raydd.store.plain import parse_json
from raydd.store.run import Run

# Told of every event that this process appends.
Listener = Callable[[str, Mapping[str, Any]], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Have `listener(event, facts)` called for every event that this process appends, after it is written."""
    if listener not in _listeners:
        _listeners.append(listener)


def append(run: Run, event: str, **facts: Any) -> None:
    """Add one event with the time and the facts (plain JSON values)."""
    _write(run, _line(event, facts))
    _tell(event, facts)


class Batch:
    """Events that come by the dozen per second, written together every `every_s` seconds.

    On an object store each write is a request, for which a driver that notes every shard would wait. To be flushed in
    the end; what is not yet written is lost with the process.
    """

    def __init__(self, run: Run, every_s: float = 5.0) -> None:
        self.run, self.every_s = run, every_s
        self.lines: list[str] = []
        self.written = time.monotonic()

    def append(self, event: str, **facts: Any) -> None:
        """Add one event, now or soon."""
        self.lines.append(_line(event, facts))
        _tell(event, facts)
        if time.monotonic() - self.written >= self.every_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines, self.lines, self.written = self.lines, [], time.monotonic()
        if lines:
            _write(self.run, "".join(lines))


def _line(event: str, facts: Mapping[str, Any]) -> str:
    return redact(json.dumps({"time": round(time.time(), 3), "event": event, **facts})) + "\n"


def _write(run: Run, lines: str) -> None:
    if files.is_local(run.uri):
        path = files.absolute(run.path("events.jsonl"))
        files.makedirs(os.path.dirname(path))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
    else:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        files.write_atomic(run.path("state", "events", name), lines.encode())


def _tell(event: str, facts: Mapping[str, Any]) -> None:
    for listener in _listeners:
        listener(event, facts)


def fold(run: Run) -> None:
    """Move loose events of an object store into events.jsonl, oldest first; nothing to do on a local disk."""
    loose = _loose(run)
    if not loose:
        return
    known = _folded(run)
    # A fold that was killed before its removals has these lines already.
    seen = set(known.splitlines(keepends=True))
    lines = [line for data in loose.values() for line in data.splitlines(keepends=True) if line not in seen]
    files.write_atomic(run.path("events.jsonl"), known + b"".join(lines))
    # By name, not the folder: an event that arrived meanwhile stays for the next fold.
    files.remove_files(run.path("state", "events"), list(loose))


def read(run: Run) -> list[dict[str, Any]]:
    """All events so far, oldest first; a line cut by a crash is left out."""
    # Loose ones first: those that are folded meanwhile are then read twice, and not missed.
    loose = _loose(run)
    folded = _folded(run).splitlines()
    seen = set(folded)
    events = []
    for line in folded + [line for data in loose.values() for line in data.splitlines() if line not in seen]:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _folded(run: Run) -> bytes:
    try:
        return files.read_bytes(run.path("events.jsonl"))
    except FileNotFoundError:
        return b""


def _loose(run: Run) -> dict[str, bytes]:
    """The loose events by file name, in order of their times; those that are removed meanwhile are left out."""
    folder = run.path("state", "events")
    names = files.list_files(folder)
    return {name: data for name, data in zip(names, files.read_many(folder, names)) if data} if names else {}
