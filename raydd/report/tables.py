"""The accuracy table, as HTML for the report and on the terminal; ranks are shown within a block and IPC only."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydd.evaluate.compare import Block, Column, Row
from raydd.evaluate.fairness import Paired, Summary
from raydd.report.headline import percent, points
from raydd.report.html import Html, details, el, join

CAPTION = (
    "Top-1 accuracy after the last step in percent: mean \u00b1 standard deviation (n), over distillation seeds where "
    "there are several, else over student seeds. Below it the paired difference to random in points with its 95 % "
    "interval. Bold: highest mean of its column and IPC. The best epoch is picked on test data: it serves comparison "
    "with papers that print it, and ranks nothing."
)


def accuracy_table(columns: Sequence[Column], colors: dict[str, str]) -> Html:
    """Rows method by IPC, one group of cells per protocol and student."""
    keys = {(row.ipc, row.is_full, row.stale, row.label): row for column in columns for row in column.rows}
    lookup = [{(r.ipc, r.is_full, r.stale, r.label): r for r in column.rows} for column in columns]
    first = lookup[0] if lookup else {}
    order = sorted(keys, key=lambda key: (*key[:3], -first[key].summary.mean if key in first else 0, key[3]))
    body, previous = [], None
    for key in order:
        cells = [cell for rows in lookup for cell in _cells(rows.get(key))]
        body.append(el("tr", *_names(keys[key], colors), *cells, class_=_row_class(keys[key], previous)))
        previous = key[0]
    groups = el("tr", el("th"), el("th"), *(_group(column) for column in columns), class_="group")
    last, best = el("th", "last step", class_="gap"), el("th", "best", el("br"), "epoch")
    heads = el("tr", el("th", "method"), el("th", "IPC"), *(cell for _ in columns for cell in (last, best)))
    table = el("table", el("thead", groups, heads), el("tbody", *body))
    return join([el("div", table, class_="scroll"), el("p", CAPTION, class_="note")])


def _group(column: Column) -> Html:
    block = column.first
    form = f"{block.labels.get('form', 'hard')} labels"
    hashes = ", ".join(dict.fromkeys(block.protocol_hash[:8] for block in column.blocks))
    title = f"protocol {hashes}; validation {block.validation.get('uri')} ({block.validation.get('count')} images)"
    name = f"{block.protocol} \u00b7 {block.student}"
    return el("th", name, el("small", form), colspan=2, class_="gap", title=title)


def _names(row: Row, colors: dict[str, str]) -> list[Html]:
    swatch = el("span", class_="swatch", style=f"background:{colors[row.label]}")
    label = "full data (ceiling)" if row.is_full else row.label
    note = el("small", "stale: evaluate again", title="the set has changed since") if row.stale else None
    return [el("th", swatch, label, note, scope="row"), el("td", row.ipc or "-")]


def _cells(row: Row | None) -> list[Html]:
    if row is None:
        return [el("td", class_="gap"), el("td")]
    value = summary_text(row.summary)
    top = row.rank == 1
    gain = el("small", paired_text(row.vs_random)) if row.vs_random else None
    best = el("small", f"{100 * row.best.mean:.1f}")
    return [el("td", el("b", value) if top else value, gain, class_="gap best" if top else "gap"), el("td", best)]


def _row_class(row: Row, previous: int | None) -> str | None:
    names = {"full": row.is_full, "stale": row.stale, "first": previous is not None and row.ipc != previous}
    return " ".join(name for name, holds in names.items() if holds) or None


def summary_text(summary: Summary) -> str:
    """`85.2 +- 1.3 (3)` in percent; without the deviation for a single value."""
    spread = "" if math.isnan(summary.std) else f" \u00b1 {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread} ({summary.n})"


def paired_text(pair: Paired) -> str:
    """`+7.1 [+3.2, +11.0]` in points; without the interval for a single pair."""
    interval = "" if math.isinf(pair.low) else f" [{points(pair.low)}, {points(pair.high)}]"
    return f"{points(pair.mean)}{interval}"


def notes_html(blocks: Sequence[Block]) -> Html | None:
    """What makes rows less comparable than they look; more than three notes are folded away."""
    notes = list(dict.fromkeys(f"{b.protocol} \u00b7 {b.student}: {note}" for b in blocks for note in b.notes))
    if not notes:
        return None
    lines = [el("p", note, class_="warn") for note in notes]
    return join(lines) if len(notes) <= 3 else details(f"{len(notes)} notes on comparability", *lines)


def print_table(blocks: Sequence[Block], console: Console) -> None:
    """Print each block as one table; what must not be ranked together stands in separate tables."""
    if not blocks:
        console.print("no evaluations: run 'raydd evaluate --run RUN --val SRC' first", markup=False)
    for block in blocks:
        form = block.labels.get("form", "hard")
        title = Text(f"{block.protocol}, {block.student}, {form} labels", style="bold")
        table = Table(title=title, title_justify="left", box=None)
        for name in ("method", "IPC", "images", "top-1 % (n)", "to random, 95 %", "best epoch"):
            method = name == "method"
            table.add_column(name, justify="left" if method else "right", no_wrap=not method, overflow="fold")
        for row in block.rows:
            table.add_row(*_printed(row))
        console.print(table)
        source = f"validation {block.validation.get('uri')}, {block.validation.get('count')} images"
        console.print(f"{source}; protocol {block.protocol_hash}", style="dim", markup=False, highlight=False)
        for note in block.notes:
            console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
        console.print()


def _printed(row: Row) -> list[Text]:
    # Text, not str: brackets of an interval or a name are no markup.
    name = "full (ceiling)" if row.is_full else f"{row.label} (stale)" if row.stale else row.label
    gain = paired_text(row.vs_random) if row.vs_random else ""
    images = "" if row.is_full else f"{row.images:,}"
    best = percent(row.best.mean).removesuffix(" %")
    return [Text(text) for text in (name, str(row.ipc or "-"), images, summary_text(row.summary), gain, best)]
