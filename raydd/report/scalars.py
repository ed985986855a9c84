"""`RUN/tensorboard/`: what the events of a run tell in numbers, for `tensorboard --logdir RUN/tensorboard`.

Written anew from `events.jsonl` whenever a stage ends, and by `raydd status --tensorboard DIR` at any time; the events
stay the truth. A curve has at most `MOST_POINTS` points, and only the first `MOST_CLASSES` classes by name have curves
of their own.

    score/images, distill/classes, evaluate/students, experts/trained    done so far, over wall time
    score/images_per_s                                                   between one point and the next
    loss/<class>                                                         LD3M: per iteration
    sort loss/<class>, chunk k                                           DsCo: after each sampling step
    accuracy/<student>, accuracy/expert <i>                              when each was trained

Decision (ours): `tensorboardX` encodes, which Ray Train brings along; without it nothing is written. It would append to
a local file; encoded whole, the file goes through the store like every other, to any URI.
"""

import dataclasses
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from raydd.errors import UserError
from raydd.store import distilled, events, filesystem
from raydd.store.learned import learned_labels, read_curves
from raydd.store.run import Run

FOLDER, FILE = "tensorboard", "events.out.tfevents.0.raydd"
MOST_POINTS, MOST_CLASSES = 300, 20
IMAGES = "score/images"
# Events that count something up, and under which tag.
COUNTED = {
    "unit_scored": IMAGES,
    "class_committed": "distill/classes",
    "student_trained": "evaluate/students",
    "expert_trained": "experts/trained",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One scalar: what, over which step, and at what time (seconds since 1970)."""

    tag: str
    step: int
    value: float
    time: float


def write_scalars(run: Run, out: str | None = None) -> str | None:
    """Write the scalars of a run to `out` (RUN/tensorboard if None); where they lie, or None if nothing was written.

    Nothing is written without `tensorboardX`, or if there is nothing to tell.
    """
    data = encode(scalars(run))
    if data is None:
        return None
    folder = out or run.path(FOLDER)
    filesystem.write_atomic(filesystem.join(folder, FILE), data)
    return folder


def scalars(run: Run) -> list[Point]:
    """Everything that a run's files tell in numbers, by time."""
    log = [event for event in events.read(run) if _number(event.get("time")) is not None]
    points = [*_counts(log), *_accuracies(log), *_sort_losses(log), *_losses(run, log)]
    return sorted(points, key=lambda point: (point.time, point.tag, point.step))


def encode(points: Sequence[Point]) -> bytes | None:
    """A TensorBoard event file; None without points, or without `tensorboardX`."""
    try:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c
    except ImportError:
        return None
    if not points:
        return None
    records = [Event(wall_time=points[0].time, file_version="brain.Event:2")]
    for point in points:
        summary = Summary(value=[Summary.Value(tag=point.tag, simple_value=point.value)])
        records.append(Event(wall_time=point.time, step=point.step, summary=summary))
    parts = []
    for record in map(Event.SerializeToString, records):
        # TFRecord: length, its checksum, content, its checksum; all little endian.
        length = struct.pack("<Q", len(record))
        parts += [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
    return b"".join(parts)


def _counts(log: Iterable[Mapping[str, Any]]) -> Iterable[Point]:
    totals: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for event in log:
        if tag := COUNTED.get(str(event.get("event"))):
            amount = _number(event.get("images")) or 0 if tag == IMAGES else 1
            totals[tag].append((event["time"], (totals[tag][-1][1] if totals[tag] else 0) + amount))
    for tag, sums in totals.items():
        kept = _thin(sums)
        yield from (Point(tag, int(total), total, when) for when, total in kept)
        if tag == IMAGES:
            for (before, start), (when, total) in pairwise(kept):
                yield Point(f"{tag}_per_s", int(total), (total - start) / max(when - before, 1e-3), when)


def _accuracies(log: Iterable[Mapping[str, Any]]) -> Iterable[Point]:
    for event in log:
        for kind, fact, prefix in (("student_trained", "last", ""), ("expert_trained", "accuracy", "expert ")):
            if event.get("event") == kind and (value := _number(event.get(fact))) is not None:
                yield Point(f"accuracy/{prefix}{event.get('name')}", 0, value, event["time"])


def _sort_losses(log: Iterable[Mapping[str, Any]]) -> Iterable[Point]:
    found = [e for e in log if e.get("event") == "noise_optimized" and isinstance(e.get("steps"), list)]
    shown = set(sorted({str(event.get("name")) for event in found})[:MOST_CLASSES])
    for event in found:
        if str(event.get("name")) in shown:
            tag = f"sort loss/{event.get('name')}, chunk {event.get('chunk')}"
            # Sampling counts down; a curve counts up.
            for step, facts in enumerate(event["steps"]):
                if isinstance(facts, dict) and (value := _number(facts.get("after"))) is not None:
                    yield Point(tag, step, value, event["time"])


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _losses(run: Run, log: Sequence[Mapping[str, Any]]) -> Iterable[Point]:
    labels = learned_labels(run)[:MOST_CLASSES]
    times = {event.get("name"): event["time"] for event in log if event.get("event") == "class_committed"}
    for label in labels:
        try:
            curves = read_curves(run, label)
        except UserError:  # a damaged curve is the report's to tell
            continue
        marker = distilled.done(run, label)
        if curves is None or marker is None:
            continue
        name = marker.get("class_name")
        when = times.get(name, 0.0)
        for step, loss in _thin(list(zip(curves.iteration.tolist(), curves.loss.tolist()))):
            yield Point(f"loss/{name}", step, loss, when)
        for step, loss in _thin(list(zip(curves.heldout_iteration.tolist(), curves.heldout.tolist()))):
            yield Point(f"held-out loss/{name}", step, loss, when)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of them, evenly spread, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
