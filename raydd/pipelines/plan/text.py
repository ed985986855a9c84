"""A plan as lines of text: what would be done, written, asked for, and how long; and which figures are of what kind."""

from collections.abc import Iterator

from raydd.pipelines.plan.bytes import Written
from raydd.pipelines.plan.cost import CPU, KINDS, Stage, add
from raydd.pipelines.plan.make import COMMIT_S, GROUP_START_S, STREAM_START_S, Plan

SHOWN = 3
# Numbers of workers that times are told for, beside the one that is planned.
WORKERS = (1, 4, 16, 64, 256)


def lines(plan: Plan) -> Iterator[str]:
    """The whole plan; nothing else is printed."""
    job = plan.prepared.job
    yield (
        f"{plan.method.name} of {job.data}: {len(job.source):,} images of {len(job.classes):,} classes to {job.ipc} "
        f"per class at {job.size} px. This is a plan: no run is written."
    )
    if not any(stage.parts for stage in plan.stages):
        yield f"Everything is there in {job.out}: nothing is left to do."
        return
    for stage in plan.stages:
        yield from _stage(plan, stage)
    yield from _bytes(plan)
    if plan.calibration is None:
        yield "time: not estimated; give --calibrate, or --calibration FILE"
    else:
        yield from _times(plan)
        yield from _machines(plan)
    yield from _honesty(plan)


def _stage(plan: Plan, stage: Stage) -> Iterator[str]:
    of = "shards" if stage.streamed else "units"
    done = f" ({stage.done:,} are there already)" if stage.done else ""
    yield f"{stage.name}: {len(stage.parts):,} {of}{done}"
    total = stage.total(1)
    for op in sorted(total, key=lambda op: (list(KINDS).index(op.kind), op.of)):
        amount = total[op]
        line = f"  {KINDS[op.kind]:46} {amount.rows:>15,}"
        calls = f" in {amount.calls:,} calls" if amount.calls < amount.rows and op.kind not in CPU else ""
        at = f" at {op.of}" if op.kind == "read" else ""
        if plan.calibration is not None:
            line += f" {duration(amount.rows * plan.calibration.rates[op].seconds):>10}"
        yield line + calls + at
    for note in stage.notes:
        yield f"  {note}"


def _bytes(plan: Plan) -> Iterator[str]:
    lasting = sum(item.size for item in plan.bytes if item.lasting)
    yield f"written: {size(lasting)}"
    for item in plan.bytes:
        yield _written(item)


def _written(item: Written) -> str:
    return f"  {item.what:46} {size(item.size):>15} ({item.how})"


def _times(plan: Plan) -> Iterator[str]:
    by_kind = plan.by_kind()
    total = sum(by_kind.values())
    device = plan.device_seconds()
    of = "GPU" if plan.device == "cuda" else "CPU worker"
    yield f"time: {duration(device)} of one {of} ({device / 3600:.3g} device hours), {duration(total - device)} of CPUs"
    shares = [f"{KINDS[kind]} {100 * value / total:.0f} %" for kind, value in list(by_kind.items())[:SHOWN] if total]
    yield f"  most of it: {'; '.join(shares)}"
    useful = max(len(stage.parts) for stage in plan.stages)
    counts = {plan.workers} if plan.is_local else {plan.workers, *(n for n in WORKERS if n < useful), 1}
    for count in sorted(counts):
        wall = plan.wall(count)
        stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in wall.items())
        longest = max(wall, key=wall.__getitem__)
        workers = "one process" if plan.is_local else f"{count} worker{'s' * (count > 1)}"
        mark = " <- this request" if count == plan.workers and len(counts) > 1 else ""
        yield f"  {workers:12} {duration(sum(wall.values())):>10}: {stages}; longest: {longest}{mark}"


def _machines(plan: Plan) -> Iterator[str]:
    if plan.is_local:
        yield "asks for: this machine, without Ray"
        return
    threads = plan.resources.threads
    for stage in plan.stages:
        if not stage.parts:
            continue
        workers = min(plan.workers, len(stage.parts))
        idle = f"; more than {len(stage.parts):,} workers have nothing to do" if not stage.streamed else ""
        if plan.device != "cuda":
            each = f"{workers} workers of {threads} CPU" + ("s" if threads > 1 else "")
            shared = ", which read as well" if stage.streamed else ""
            yield f"asks for, {stage.name}: {each}{shared}{idle}"
            continue
        readers = f" and {plan.readers(stage, workers)} CPUs that keep up with them" if stage.streamed else ""
        yield f"asks for, {stage.name}: {workers} workers of one GPU{readers}{idle}"


def _honesty(plan: Plan) -> Iterator[str]:
    calibration = plan.calibration
    yield "figures: counted, as if every image could be read"
    if calibration is None:
        return
    place = f"given by {calibration.file}" if calibration.file else "measured here"
    yield (
        f"  {place}, {calibration.made}: seconds per operation, reading included, on {calibration.machine} "
        f"({calibration.device}, {calibration.threads} thread{'s' * (calibration.threads > 1)})"
    )
    total = add([stage.total() for stage in plan.stages])
    small = [
        f"{KINDS[op.kind]} at {rate.rows} of {round(amount.rows / amount.calls)}"
        for op, amount in sorted(total.items())
        if 2 * (rate := calibration.rates[op]).rows < amount.rows / amount.calls and op.kind not in CPU
    ]
    if small:
        yield f"  at smaller batches than the run's, where more at once may be faster: {', '.join(small)}"
    if calibration.threads != plan.resources.threads:
        yield f"  --threads {plan.resources.threads} was not measured: the file is of {calibration.threads}"
    starts = "" if plan.is_local else f", {STREAM_START_S:g} and {GROUP_START_S:g} s to start a stream and workers"
    yield f"  guessed: {COMMIT_S:g} s to write what a shard or a unit made{starts}"
    yield "  not in the sum: transfers between machines, retries, lost machines, evaluation"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if 0 < seconds < 0.01:
        return "<0.01 s"
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 86_400)} days"


def size(count: float) -> str:
    """Bytes for people, in thousands."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count) < 1000:
            return f"{_digits(count)} {unit}"
        count /= 1000
    return f"{_digits(count)} TB"


def _digits(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
