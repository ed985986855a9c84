"""What the events of a run add up to: how far each stage is, which units are at work or failed, and how fast it goes.

Stages announce themselves with `work_started` (stage, total, left); events of units that follow belong to that stage. A
stage that is begun again starts to count anew from what was left. Events of an older raydd lack the announcement: what
was done is then counted, but not how much there is to do.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from raydd.store import events
from raydd.store.lease import LAST_S
from raydd.store.run import Run

# Units that the rate is taken over.
RECENT = 100
# The event that says a unit of a stage is done.
FINISHED = {
    "unit_scored": "score",
    "class_committed": "distill",
    "student_trained": "evaluate",
    "expert_trained": "experts",
}


@dataclasses.dataclass
class Work:
    """One stage since its work was last begun, at `begun` seconds since 1970 (None: not told).

    total: what there is to do, `before` of it done by earlier jobs. finished: (time, amount) of each finished unit.
    started: what each unit at work still has to finish. failed: reason by unit.
    """

    begun: float | None = None
    total: int | None = None
    before: int = 0
    finished: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    started: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.before + sum(amount for _, amount in self.finished)

    def rate(self, now: float) -> float | None:
        """Finished per second over the last `RECENT` units, up to `now`; None before the first."""
        if self.begun is None or not self.finished:
            return None
        recent = self.finished[-RECENT:]
        since = self.begun if len(recent) == len(self.finished) else self.finished[-RECENT - 1][0]
        return sum(amount for _, amount in recent) / max(now - since, 1e-3)

    def start(self, unit: str, parts: Any) -> None:
        """A unit is at work; `parts` are the names it will finish one by one, its own without."""
        self.started[unit] = set(map(str, parts)) if isinstance(parts, list) else {unit}
        self.failed.pop(unit, None)

    def finish(self, name: str, when: float, amount: int) -> None:
        """A unit, or a part of one, is done."""
        self.finished.append((when, amount))
        self.failed.pop(name, None)
        for unit, parts in list(self.started.items()):
            parts.discard(name)
            if unit == name or not parts:
                del self.started[unit]

    def stop(self, unit: str, reason: str | None = None) -> None:
        """A unit is no longer at work; with a reason, it failed."""
        self.started.pop(unit, None)
        if reason is not None:
            self.failed[unit] = reason


def follow(log: Iterable[Mapping[str, Any]]) -> dict[str, Work]:
    """The work of every stage that events tell of."""
    works: dict[str, Work] = {}
    current = Work()
    for event in log:
        kind, name, when = str(event.get("event")), str(event.get("name")), _number(event.get("time"))
        if kind == "work_started":
            total = _count(event, "total")
            current = works[str(event.get("stage"))] = Work(when, total, total - _count(event, "left"))
        elif kind == "unit_started":
            current.start(name, event.get("parts"))
        elif kind in FINISHED:
            amount = _count(event, "images") + _count(event, "dropped") if kind == "unit_scored" else 1
            works.setdefault(FINISHED[kind], Work()).finish(name, when, amount)
        elif kind == "unit_retried":
            current.stop(name)
        elif kind == "unit_failed":
            current.stop(name, str(event.get("reason")))
    return works


def dropped(log: Iterable[Mapping[str, Any]]) -> int:
    """Images that scoring dropped; a shard that was scored twice counts once."""
    shards = {str(event.get("unit")): _count(event, "dropped") for event in log if event.get("event") == "unit_scored"}
    return sum(shards.values())


def start_work(run: Run, stage: str, *, total: int, left: int) -> None:
    """Announce a stage's work: `left` of `total` are to be done."""
    events.append(run, "work_started", stage=stage, total=total, left=left)


def start_unit(run: Run, name: str, parts: list[str] | None = None) -> None:
    """Say that a unit is at work; `parts` are the names under which its pieces will be finished."""
    events.append(run, "unit_started", name=name, **({} if parts is None else {"parts": parts}))


def _count(event: Mapping[str, Any], name: str) -> int:
    return int(_number(event.get(name)))


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and 0 <= value < LAST_S else 0
