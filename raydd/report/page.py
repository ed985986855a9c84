"""One self-contained HTML page over one or several runs: what a person looks at.

Style, plots and images are inside the file; it needs no network and runs no script. It opens with one sentence, then
shows the accuracy table, accuracy over IPC, accuracy per class, the images, how they were optimized, the curves, what
was dropped, bytes, time, and, folded, the configuration. Whatever a run does not have is left out.
"""

from collections.abc import Sequence

import raydd
from raydd.errors import UserError
from raydd.evaluate.compare import Block, columns, compare, variant_names
from raydd.evaluate.record import FULL, RunResults, read_results
from raydd.report.facts import Groups, bytes_part, configuration_part, dropped_part, timings_part
from raydd.report.headline import Headline, choose_headline, headline_note, headline_sentence
from raydd.report.html import Html, el, section
from raydd.report.optimization import optimization_parts
from raydd.report.plots import MOST_CLASSES, accuracy_plot, class_plot, curve_plot
from raydd.report.sheets import contact_sheet
from raydd.report.style import CSS, row_colors
from raydd.report.tables import accuracy_table, notes_html
from raydd.store import filesystem as files
from raydd.store.run import Run

NAME = "report.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(runs: Sequence[Run], out_uri: str, title: str) -> str:
    """Write the report of the runs and return its URI.

    `out_uri` is the file if it ends in `.html`, else a directory that gets a `report.html`. Raises `UserError` for no
    runs, or for one that holds no distilled set.
    """
    if not runs:
        raise UserError("no runs to report: give one or several run directories")
    results = list({run.uri: read_results(run) for run in runs}.values())
    uri = out_uri if out_uri.endswith(".html") else files.join(out_uri, NAME)
    files.write_atomic(uri, page(results, title).encode())
    return uri


def page(results: Sequence[RunResults], title: str) -> Html:
    """The whole document."""
    blocks = compare(results)
    headline = choose_headline(blocks)
    variants = variant_names(results)
    names = {result.run.uri: f"{result.method} {variants[result.run.uri]}".strip() for result in results}
    groups = _groups(results, names)
    colors = row_colors([*names.values(), *(row.label for block in blocks for row in block.rows)])
    body = el(
        "main",
        el("h1", title),
        el("p", headline_sentence(results, headline), class_="headline"),
        el("p", headline_note(headline), class_="note") if headline else None,
        *_judgement(blocks, headline, colors),
        section("Images", *_sheets(groups, headline)),
        section("Optimization", *optimization_parts(groups, colors)),
        section("Learning curves", curve_plot(_curve_places(blocks, headline), colors)),
        section("Dropped images", dropped_part(results)),
        section("Bytes", bytes_part(groups)),
        section("Time", timings_part(groups)),
        section("Configuration and versions", configuration_part(results)),
        el("footer", f"Written by raydd {raydd.__version__}."),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # The page can load nothing and run nothing, whatever a run's files contain.
        el(
            "meta",
            http_equiv="Content-Security-Policy",
            content=POLICY,
        ),
        el("title", title),
        el("style", Html(CSS)),
    )
    return Html(f"<!doctype html>\n{el('html', head, el('body', body), lang='en')}\n")


def _judgement(blocks: Sequence[Block], headline: Headline | None, colors: dict[str, str]) -> list[Html | None]:
    if not blocks:
        hint = "Evaluate students on it with 'raydd evaluate --run RUN --val SRC'."
        return [section("Accuracy", el("p", hint, class_="note"))]
    side_by_side = columns(blocks)
    many = len({ipc for block in blocks for ipc in block.ipcs}) > 1
    parts = [
        section("Accuracy", accuracy_table(side_by_side, colors), notes_html(blocks)),
        section(f"Accuracy {'over images per class' if many else 'by method'}", accuracy_plot(side_by_side, colors)),
    ]
    if headline:
        place = f"{headline.block.protocol} \u00b7 {headline.block.student} \u00b7 IPC {headline.ipc}."
        order = "largest gain over random" if headline.random not in (None, headline.best) else "highest"
        place += f" Means over all seeds, {order} first."
        if len(headline.block.classes) > MOST_CLASSES:
            place += f" Of {len(headline.block.classes)} classes the first and the last {MOST_CLASSES // 2}."
        parts.append(section("Accuracy per class", class_plot(headline, colors), el("p", place, class_="note")))
    return parts


def _groups(results: Sequence[RunResults], names: dict[str, str]) -> Groups:
    """The runs of each row of the table, by distillation seed; rows by IPC and label."""
    groups: Groups = {}
    for result in sorted(results, key=lambda result: (result.ipc, names[result.run.uri], result.seed)):
        groups.setdefault((names[result.run.uri], result.ipc), []).append(result)
    return groups


def _sheets(groups: Groups, headline: Headline | None) -> list[Html | None]:
    """One sheet per row of the table, of the run with the lowest distillation seed; the headline's first, unfolded."""
    made = [key for key, runs in groups.items() if runs[0].method != FULL]
    best = (headline.best.label, headline.ipc) if headline else next(iter(made), None)
    order = sorted(made, key=lambda key: (key != best, key[1], key[0]))
    return [contact_sheet(groups[key][0], key[0], open_=key == best) for key in order]


def _curve_places(blocks: Sequence[Block], headline: Headline | None) -> list[tuple[Block, int]]:
    """One panel per column, at the IPC of the headline where the column has it, else at its largest."""
    places = []
    for column in columns(blocks):
        found = [(block, ipc) for block in column.blocks for ipc in block.ipcs]
        wanted = [place for place in found if headline and place[1] == headline.ipc]
        places.append((wanted or sorted(found, key=lambda place: place[1]))[-1])
    return places
