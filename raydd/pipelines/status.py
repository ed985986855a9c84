"""`raydd status`: what a run is doing, from its files alone, so from any machine, while it is written or long after.

Stages come from `run.json`, classes from their done-markers, the job at work from the lease, everything else from
`events.jsonl` (`raydd.store.progress`). Nothing is computed and nothing is written.

The rate counts up to now, so a job that stands still gets slower. Units are handed out longest first, so the time left
is rather too long than too short. Ages compare this machine's clock with others'.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydd.store import distilled, events, lease
from raydd.store.holder import STALE_S
from raydd.store.lease import Lease
from raydd.store.progress import Work, dropped, follow
from raydd.store.run import Run

SHOWN = 5
COUNTED = {"score": "images", "distill": "classes", "evaluate": "students", "experts": "experts"}
RUNNING, ENDED, STOPPED, LOST = "running", "ended", "stopped", "lost"
SAID = {
    RUNNING: "a job is at work",
    ENDED: "no job is at work, and every stage that was begun has ended",
    STOPPED: "no job is at work: the same command goes on from here",
    LOST: "the job at work seems to have died: the same command goes on from here",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: `done` of `total` `counted` (None: not known).

    rate: of these per second, and left_s: seconds left, while a job is at work on it. in_flight: units that were
    started and have neither finished nor failed. failed: reason by unit. facts: what run.json says of its end.
    """

    name: str
    counted: str
    begun: str | None
    ended: str | None
    done: int | None
    total: int | None
    rate: float | None
    left_s: float | None
    in_flight: list[str]
    failed: dict[str, str]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment. made: method, IPC, seed, size, version. holder: who writes it, and `renewed_ago` seconds."""

    uri: str
    made: dict[str, Any]
    state: str
    holder: dict[str, Any] | None
    stages: list[Stage]
    retried: int
    preempted: int
    resumed: int
    dropped: int
    last_event: dict[str, Any] | None


def read_status(run: Run, now: float | None = None) -> Status:
    """The state of a run at `now`, seconds since 1970. Raises `UserError` if there is no run, or a newer raydd's."""
    now = time.time() if now is None else now
    record, log, held = run.read(), events.read(run), lease.read(run)
    facts = {name: value for name, value in record["stages"].items() if isinstance(value, dict)}
    config = record["config"].get("distill")
    config = config if isinstance(config, dict) else {}
    state, works = _state(facts, held, now), follow(log)
    stages = [_stage(name, facts[name], works.get(name, Work()), state == RUNNING, now) for name in facts]
    if isinstance(classes := config.get("classes"), list):
        # The done-markers are the truth, also about classes that were committed before the events began.
        done = len(distilled.committed_labels(run))
        stages = [_of_classes(stage, done, len(classes)) if stage.name == "distill" else stage for stage in stages]
    kinds = [event.get("event") for event in log]
    made = {name: config[name] for name in ("method", "ipc", "seed", "size") if name in config}
    return Status(
        uri=run.uri,
        made=made | {"raydd": record.get("raydd")},
        state=state,
        holder=None if held is None else dataclasses.asdict(held) | {"renewed_ago": max(0.0, now - held.renewed)},
        stages=stages,
        retried=kinds.count("unit_retried"),
        preempted=kinds.count("unit_preempted"),
        resumed=kinds.count("unit_resumed"),
        dropped=dropped(log),
        last_event=log[-1] if log else None,
    )


def _state(stages: Mapping[str, Any], held: Lease | None, now: float) -> str:
    if held is not None:
        return LOST if held.has_died() or now - held.renewed > STALE_S else RUNNING
    return ENDED if all(facts.get("ended") for facts in stages.values()) else STOPPED


def _stage(name: str, facts: dict[str, Any], work: Work, running: bool, now: float) -> Stage:
    ended = facts.get("ended")
    done = None if work.total is None else min(work.done, work.total)
    rate = work.rate(now) if running and not ended else None
    return Stage(
        name=name,
        counted=COUNTED.get(name, "units"),
        begun=facts.get("started"),
        ended=ended,
        done=done,
        total=work.total,
        rate=rate,
        left_s=(work.total - done) / rate if rate and done is not None else None,
        in_flight=[] if ended else sorted(work.started),
        failed=dict(work.failed),
        facts={name: value for name, value in facts.items() if name not in ("started", "ended", "hash")},
    )


def _of_classes(stage: Stage, done: int, total: int) -> Stage:
    left_s = max(total - done, 0) / stage.rate if stage.rate else None
    return dataclasses.replace(stage, done=done, total=total, left_s=left_s)


def lines(status: Status, now: float | None = None) -> Iterator[str]:
    """The status in plain lines."""
    now = time.time() if now is None else now
    made = status.made
    what = [f"{made['method']}, IPC {made.get('ipc')}, seed {made.get('seed')}"] if "method" in made else []
    yield f"{status.uri}: {', '.join([*what, 'raydd ' + str(made['raydd'])])}"
    yield f"{status.state}: {SAID[status.state]}"
    if status.holder:
        known = {field.name: status.holder[field.name] for field in dataclasses.fields(Lease)}
        yield f"written by {Lease(**known).who}, renewed {_span(status.holder['renewed_ago'])} ago"
    for stage in status.stages:
        yield from _stage_lines(stage)
    yield (
        f"retried {status.retried}, preempted {status.preempted}, resumed {status.resumed}; "
        f"images dropped {status.dropped}"
    )
    if status.last_event and isinstance(when := status.last_event.get("time"), (int, float)):
        name = status.last_event.get("name") or status.last_event.get("unit") or ""
        yield f"last event: {status.last_event.get('event')} {name}".rstrip() + f", {_span(max(0, now - when))} ago"


def _stage_lines(stage: Stage) -> Iterator[str]:
    line = f"{stage.name}: begun {stage.begun}" + (f", ended {stage.ended}" if stage.ended else "")
    if stage.total is not None:
        line += f"; {stage.done:,} of {stage.total:,} {stage.counted}"
    if stage.left_s is not None:
        line += f", {stage.rate:.3g}/s, about {_span(stage.left_s)} left"
    yield line
    if stage.in_flight:
        yield f"  in flight: {_some(stage.in_flight)}"
    for name, reason in list(stage.failed.items())[:SHOWN]:
        yield f"  failed: {name}: {reason}"
    if len(stage.failed) > SHOWN:
        yield f"  failed: {len(stage.failed) - SHOWN} more"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _span(seconds: float) -> str:
    """`12 s`, `3 min`, `2.5 h` or `4 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86400:.0f} days"
