"""`events.jsonl`: one line per unit started, committed, retried, preempted or failed; it makes a resume explainable.

On a local disk lines are appended (one short write each, so several processes may share the file). Object stores
cannot append: there each event is a small object under `state/events/`, folded into `events.jsonl` by `fold`.
"""

import json
import os
import time
import uuid
from typing import Any

from raydd.errors import redact
from raydd.store import filesystem as files
from raydd.store.plain import parse_json
from raydd.store.run import Run


def append(run: Run, event: str, **facts: Any) -> None:
    """Add one event with the time and the facts (plain JSON values)."""
    line = redact(json.dumps({"time": round(time.time(), 3), "event": event, **facts})) + "\n"
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
    known = _folded(run)
    # A fold that was killed before its removals has these lines already.
    seen = set(known.splitlines(keepends=True))
    files.write_atomic(run.path("events.jsonl"), known + b"".join(line for line in loose.values() if line not in seen))
    # One by one: an event that arrived meanwhile stays for the next fold.
    for name in loose:
        files.remove_tree(run.path("state", "events", name))


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
