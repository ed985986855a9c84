"""Numbers are written as stated, blocks are printed apart, and names are no markup on the terminal either."""

import dataclasses
import io
import math

from rich.console import Console

from raydd.evaluate.compare import columns, compare
from raydd.evaluate.fairness import Paired, Summary
from raydd.evaluate.record import read_results
from raydd.report.style import row_colors
from raydd.report.tables import accuracy_table, notes_html, paired_text, print_table, summary_text


def printed(blocks, width=140) -> str:
    sink = io.StringIO()
    print_table(blocks, Console(file=sink, width=width))
    return sink.getvalue()


def test_summaries_and_pairs():
    assert summary_text(Summary(0.8523, 0.0131, 3)) == "85.2 \u00b1 1.3 (3)"
    assert summary_text(Summary(0.5, math.nan, 1)) == "50.0 (1)"
    assert paired_text(Paired(0.071, 0.032, 0.11, 3)) == "+7.1 [+3.2, +11.0]"
    assert paired_text(Paired(0.071, -math.inf, math.inf, 1)) == "+7.1"


def test_each_block_is_printed_apart_with_its_hash(runs):
    blocks = compare([read_results(run) for run in runs])
    text = printed(blocks)
    assert len(blocks) == 4
    assert text.count("validation digits, 360 images") == 4 and all(b.protocol_hash in text for b in blocks)
    assert text.count("full (ceiling)") == 4
    for block in blocks:
        for row in block.rows:
            assert summary_text(row.summary) in text
            assert row.vs_random is None or paired_text(row.vs_random) in text


def test_markup_in_a_name_is_printed_as_it_is(runs):
    (block, *_) = compare([read_results(run) for run in runs])
    row = dataclasses.replace(block.rows[0], variant="[red]x[/red]", stale=True)
    text = printed([dataclasses.replace(block, rows=(row,), notes=("[bold]n",))])
    assert "[red]x[/red] (stale)" in text and "note: [bold]n" in text


def test_a_narrow_terminal_folds_names_and_cuts_none(runs):
    (block, *_) = compare([read_results(run) for run in runs])
    row = dataclasses.replace(block.rows[0], variant="x" * 40)
    _, header, *lines = printed([dataclasses.replace(block, rows=(row,), notes=())], width=80).splitlines()
    end = header.index("IPC") - 1
    assert "".join(line[:end].strip() for line in lines).startswith(row.label.replace(" ", ""))


def test_nothing_to_print_says_what_to_type():
    assert "raydd evaluate" in printed([])


def test_the_html_table_marks_best_ceiling_and_stale(runs):
    blocks = compare([read_results(run) for run in runs])
    stale = dataclasses.replace(blocks[0].rows[0], stale=True, rank=None, variant="old")
    blocks = [dataclasses.replace(blocks[0], rows=(*blocks[0].rows, stale)), *blocks[1:]]
    colors = row_colors(row.label for block in blocks for row in block.rows)
    html = accuracy_table(columns(blocks), colors)
    assert html.count("<b>") == 4
    assert html.count('class="full') == 2 and html.count('class="stale') == 1
    # One column group per protocol; IPC 1 and 10 are rows of the same.
    assert html.count('colspan="2"') == 2


def test_many_notes_fold(runs):
    (block, *_) = compare([read_results(run) for run in runs])
    assert notes_html([block]) is None
    few = notes_html([dataclasses.replace(block, notes=("a <b>",))])
    many = notes_html([dataclasses.replace(block, notes=tuple("abcd"))])
    assert "a &lt;b&gt;" in few and "<details>" not in few and "4 notes" in many
