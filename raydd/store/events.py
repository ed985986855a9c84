"""`events.jsonl`: one line per unit started, committed, retried, preempted or failed; it makes a resume explainable.

On a local disk lines are appended (one short write each, so several processes may share the file). Object stores
cannot append: there each event is a small object under `state/events/`, folded into `events.jsonl` by `fold`.
"""

import json
import os
import time
import uuid
from typing import Any

from raydd.store import filesystem as files
from raydd.store.run import Run


def append(run: Run, event: str, **facts: Any) -> None:
    """Add one event with the time and the facts (plain JSON values)."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
    if files.is_local(run.uri):
        path = files.absolute(run.path("events.jsonl"))
        files.makedirs(os.path.dirname(path))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    else:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        files.write_atomic(run.path("state", "events", name), line.encode())


def fold(run: Run) -> None:
    """Move loose events of an object store into events.jsonl, oldest first; nothing to do on a local disk."""
    loose = _loose(run)
    if not loose:
        return
    known = files.read_bytes(run.path("events.jsonl")) if files.exists(run.path("events.jsonl")) else b""
    # A fold that was killed before its removals has these lines already.
    seen = set(known.splitlines(keepends=True))
    fresh = [line for uri in loose if (line := files.read_bytes(uri)) not in seen]
    files.write_atomic(run.path("events.jsonl"), known + b"".join(fresh))
    # One by one: an event that arrived meanwhile stays for the next fold.
    for uri in loose:
        files.remove_tree(uri)


def read(run: Run) -> list[dict[str, Any]]:
    """All events so far, oldest first; a line cut by a crash is left out."""
    lines = []
    if files.exists(run.path("events.jsonl")):
        lines = files.read_bytes(run.path("events.jsonl")).decode().splitlines()
    for uri in _loose(run):
        lines += files.read_bytes(uri).decode().splitlines()
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _loose(run: Run) -> list[str]:
    folder = run.path("state", "events")
    return [files.join(folder, name) for name in files.list_files(folder)]
