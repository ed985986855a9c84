"""Which result a report opens with, and the sentence that says it.

The choice looks at no accuracy: the block and IPC with the most methods, among equals the first in the table's order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raydd.evaluate.compare import Block, Row
from raydd.evaluate.record import FULL, RANDOM, RunResults


@dataclass(frozen=True)
class Headline:
    """The rows that the report's sentence and its per-class plot are about; None for what was not evaluated."""

    block: Block
    ipc: int
    best: Row
    random: Row | None
    full: Row | None


def choose_headline(blocks: Sequence[Block]) -> Headline | None:
    """The headline of a comparison; None when nothing ranks. `best` is the best method that is not `random`, if any.

    Where most rows stand, at the largest IPC among equals: never chosen by accuracy.
    """
    places = [(block, ipc) for block in blocks for ipc in block.ipcs if _ranked(block, ipc)]
    if not places:
        return None
    block, ipc = max(places, key=lambda place: (len(place[0].at(place[1])), place[1]))
    ranked = _ranked(block, ipc)
    methods = [row for row in ranked if row.method != RANDOM] or ranked
    random = next((row for row in ranked if row.method == RANDOM), None)
    full = next((row for row in block.at(ipc) if row.is_full and not row.stale), None)
    return Headline(block, ipc, methods[0], random, full)


def _ranked(block: Block, ipc: int) -> list[Row]:
    return sorted((row for row in block.at(ipc) if row.rank is not None), key=lambda row: row.rank or 0)


def headline_sentence(results: Sequence[RunResults], headline: Headline | None) -> str:
    """What was distilled, and the best method against random and full data, in one sentence."""
    if headline is None:
        return _unjudged(results)
    best, result = headline.best, headline.best.sources[0][0]
    text = (
        f"{best.label} distilled {result.source_name} to {_count(headline.ipc, 'image')} per class: "
        f"{headline.block.student} trained on them reaches {percent(best.summary.mean)}"
    )
    others = []
    if headline.random is not None and headline.random is not best:
        others.append(f"{percent(headline.random.summary.mean)} on random real images")
    if headline.full is not None:
        others.append(f"{percent(headline.full.summary.mean)} on the full data")
    return f"{text}, against {' and '.join(others)}." if others else f"{text}."


def headline_note(headline: Headline) -> str:
    """Protocol and, where there are pairs, what the difference to random is worth."""
    place = _place(headline)
    pair = headline.best.vs_random
    if headline.best is headline.random:
        return place
    if pair is None:
        return f"{place} No random control with the same seeds is among these runs, so no gain is claimed."
    gain = f"Difference to random: {points(pair.mean)} points"
    if math.isinf(pair.low):
        return f"{place} {gain} on a single pair of seeds: too few for an interval."
    verdict = "better" if pair.better else "worse" if pair.worse else "not shown to differ"
    interval = f"95 % interval {points(pair.low)} to {points(pair.high)}, {_count(pair.n, 'pair')}"
    return f"{place} {gain} ({interval}): {verdict}."


def _place(headline: Headline) -> str:
    block = headline.block
    early = " of an early teacher" if block.labels.get("early") else ""
    text = f"Protocol {block.protocol}, {block.labels.get('form', 'hard')} labels{early}"
    steps = {row.steps for row in block.at(headline.ipc) if not row.stale}
    if len(steps) == 1 and len(headline.best.steps) == 1:
        text += f", {headline.best.steps[0]:,} optimizer steps for every row"
    if block.validation.get("count"):
        text += f", tested on {_count(block.validation['count'], 'validation image')}"
    return f"{text}."


def _unjudged(results: Sequence[RunResults]) -> str:
    made = [result for result in results if result.method != FULL]
    if not made:
        return f"The full data of {results[0].source_name}, the ceiling: no distilled set is among these runs."
    first = made[0]
    images = _count(int(first.manifest.get("images", 0)), "image")
    more = f", and {_count(len(made) - 1, 'more set')}" if len(made) > 1 else ""
    judged = any(result.evaluations for result in made)
    state = "its evaluations are stale, evaluate again" if judged else "no student has been evaluated yet"
    return f"{first.method} distilled {first.source_name} to {images}{more}; {state}."


def percent(value: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
