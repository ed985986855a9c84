"""The plots draw the numbers they are given: read back from the figures' axes."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from raydd.evaluate.compare import columns, compare
from raydd.evaluate.record import read_results
from raydd.report import plots
from raydd.report.headline import choose_headline
from raydd.report.style import FIXED, PALETTE, row_colors


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures as drawn, instead of their images."""
    figures = []
    image = plots.plot_image

    def keep(figure, alt):
        figures.append(figure)
        return image(figure, alt)

    monkeypatch.setattr(plots, "plot_image", keep)
    return figures


@pytest.fixture(scope="module")
def blocks(runs):
    return compare([read_results(run) for run in runs])


@pytest.fixture(scope="module")
def colors(blocks):
    return row_colors(row.label for block in blocks for row in block.rows)


def test_accuracy_over_ipc(blocks, colors, drawn):
    html = plots.accuracy_plot(columns(blocks), colors)
    assert html.startswith('<img src="data:image/svg+xml;base64,')
    axes = drawn[0].axes[0]
    lines = {container.get_label(): container[0].get_xydata() for container in axes.containers}
    expected = {row.label: row.summary for row in blocks[1].rows}
    assert set(lines) == {"infoutil", "kmeans", "random", "full data"}
    for label in ("infoutil", "kmeans", "random"):
        assert lines[label][:, 0].tolist() == [1, 10]
        assert lines[label][1, 1] == pytest.approx(100 * expected[label].mean)


def test_one_ipc_is_drawn_as_dots(blocks, colors, drawn):
    plots.accuracy_plot(columns(blocks[:1]), colors)
    names = [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()]
    assert names == ["random", "kmeans", "infoutil", "full data"]


def test_a_single_row_is_no_plot(blocks, colors):
    alone = dataclasses.replace(blocks[0], rows=blocks[0].rows[:1])
    assert plots.accuracy_plot(columns([alone]), colors) is None
    assert plots.accuracy_plot([], colors) is None


def test_bars_per_class_are_means_sorted_by_gain(blocks, colors, drawn):
    headline = choose_headline(blocks)
    plots.class_plot(headline, colors)
    best, random = ([bar.get_height() for bar in bars] for bars in drawn[0].axes[0].containers)
    ours = np.array([s.per_class for _, e in headline.best.sources for s in e.seeds])
    theirs = np.array([s.per_class for _, e in headline.random.sources for s in e.seeds])
    assert ours.shape == (9, 10)
    order = np.argsort(theirs.mean(0) - ours.mean(0), kind="stable")
    assert best == pytest.approx(100 * ours.mean(0)[order]) and random == pytest.approx(100 * theirs.mean(0)[order])
    gains = np.array(best) - np.array(random)
    assert (np.diff(gains) <= 1e-9).all()


def test_many_classes_are_cut_to_the_two_ends(blocks, colors, drawn):
    headline = choose_headline(blocks)
    grown = [widened(row, 60) for row in (headline.best, headline.random)]
    block = dataclasses.replace(headline.block, classes=tuple(f"${i}" for i in range(60)))
    plots.class_plot(dataclasses.replace(headline, block=block, best=grown[0], random=grown[1]), colors)
    assert len(drawn[0].axes[0].containers[0]) == plots.MOST_CLASSES


def widened(row, count):
    def widen(evaluation):
        seeds = [dataclasses.replace(s, per_class=(s.per_class * count)[:count]) for s in evaluation.seeds]
        seeds[0].per_class[0] = math.nan
        return dataclasses.replace(evaluation, seeds=seeds)

    return dataclasses.replace(row, sources=tuple((run, widen(e)) for run, e in row.sources))


def test_curves_are_means_over_seeds(blocks, colors, drawn):
    plots.curve_plot([(blocks[0], 1)], colors)
    lines = {line.get_label(): line.get_xydata() for line in drawn[0].axes[0].lines}
    row = blocks[0].rows[0]
    curves = np.array([s.curve for _, e in row.sources for s in e.seeds])
    assert lines[row.label][:, 0].tolist() == curves[0, :, 0].tolist()
    assert lines[row.label][:, 1] == pytest.approx(100 * curves[:, :, 1].mean(0))
    assert plots.curve_plot([], colors) is None


def test_equal_results_give_equal_bytes(blocks, colors):
    assert plots.accuracy_plot(columns(blocks), colors) == plots.accuracy_plot(columns(blocks), colors)


def test_colors_are_distinct_and_keep_random_and_full():
    labels = ["full", "random", "a", "b", "c", "d", "e", "f", "g", "h"]
    colors = row_colors(labels)
    assert len(set(colors.values())) == 10 and colors == row_colors(labels[::-1])
    assert {colors["full"], colors["random"]} == set(FIXED.values()) and colors["a"] == PALETTE[0]
