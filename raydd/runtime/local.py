"""The executor without Ray: the same units and shards, one after the other in this process. The others' oracle."""

import concurrent.futures
from collections.abc import Callable, Sequence

from raydd.data.source import SourceUnit
from raydd.runtime.stream import ScoreStream, decode_unit
from raydd.runtime.work import (
    Context,
    Failure,
    OnEvent,
    Resources,
    Ticker,
    Unit,
    describe,
    raise_unfinished,
    settle,
    undone,
)


def run_units(units: Sequence[Unit], resources: Resources, what: str, on_event: OnEvent | None = None) -> None:
    """Run every unit that is not done, longest first; raise `Unfinished` at the end if some failed."""
    todo = sorted(undone(units), key=lambda unit: (-unit.cost, unit.name))
    if not todo:
        return
    context = Context(device=settle(resources.threads))
    failures: dict[str, Failure] = {}
    ticker = Ticker(what, len(todo))
    for count, unit in enumerate(todo, 1):
        try:
            unit.run(context)
        except Exception as error:
            failures[unit.name] = describe(error)
            if on_event:
                on_event(unit, "unit_failed", {"reason": failures[unit.name].reason})
        ticker.update(count - len(failures), f", {len(failures)} failed" if failures else "")
    raise_unfinished(what, failures, [unit.name for unit in undone(todo) if unit.name not in failures])


def stream_scores(
    stream: ScoreStream, units: Sequence[SourceUnit], resources: Resources, on_unit: Callable[[dict], None]
) -> None:
    """Score units in order; the next one is read and decoded in a thread while this one is computed."""
    if not units:
        return
    score = stream.open(settle(resources.threads))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(decode_unit, units[0], stream.size)
        for following in [*units[1:], None]:
            decoded = waiting.result()
            if following is not None:
                waiting = pool.submit(decode_unit, following, stream.size)
            on_unit(score(decoded).to_pylist()[0])
