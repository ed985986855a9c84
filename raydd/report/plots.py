"""The report's plots as SVG data URIs: accuracy over IPC, accuracy per class, learning curves.

Figures are drawn on the Agg-class canvas without pyplot, hence without global state or a display; equal results give
equal bytes.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydd.evaluate.compare import Block, Column, Row
from raydd.report.headline import Headline
from raydd.report.html import Html, el
from raydd.report.style import PLOT

WIDTH = 10.6
# More bars than this cannot be read: only the classes that gain and lose most are drawn.
MOST_CLASSES = 40
# A legend of more lines than this stands beside the plot.
MOST_INSIDE = 4


def accuracy_plot(columns: Sequence[Column], colors: Mapping[str, str]) -> Html | None:
    """Accuracy over IPC, one panel per protocol and student, error bars of one standard deviation.

    A panel with a single IPC shows one dot per method instead. None where no panel would have two rows.
    """
    if all(len(column.rows) < 2 for column in columns):
        return None
    with matplotlib.rc_context(PLOT):
        figure, grid = panels(len(columns), 2.9)
        for axes, column in zip(grid, columns):
            axes.set_title(f"{column.first.protocol} \u00b7 {column.first.student}")
            rows = [row for row in column.rows if not row.stale]
            many = len({row.ipc for row in rows}) > 1
            (_over_ipc if many else _dots)(axes, rows, colors)
        return plot_image(figure, "Accuracy over images per class")


def _over_ipc(axes: Axes, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    labels = list(dict.fromkeys(row.label for row in rows))
    for label in labels:
        own = [row for row in rows if row.label == label]
        means = [100 * row.summary.mean for row in own]
        style = {"linestyle": "--", "marker": "_"} if own[0].is_full else {"marker": "o", "markersize": 4}
        name = "full data" if own[0].is_full else label
        x = [row.ipc for row in own]
        axes.errorbar(x, means, yerr=_errors(own), label=name, color=colors[label], capsize=2, linewidth=1.4, **style)
    ticks = sorted({row.ipc for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(ipc) for ipc in ticks])
    axes.minorticks_off()
    axes.set_xlabel("images per class")
    axes.set_ylabel("top-1 accuracy, %")
    # Many lines leave no corner free.
    beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if len(labels) > MOST_INSIDE else {}
    axes.legend(fontsize=8, **beside)


def _dots(axes: Axes, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    ordered = sorted(rows, key=lambda row: row.summary.mean)
    for y, (row, error) in enumerate(zip(ordered, _errors(ordered))):
        mean = 100 * row.summary.mean
        axes.errorbar(mean, y, xerr=error, color=colors[row.label], marker="o", markersize=6, capsize=3)
        axes.annotate(f"{mean:.1f}", (mean, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(ordered)), ["full data" if row.is_full else row.label for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.3)
    axes.margins(x=0.15)
    axes.set_xlabel("top-1 accuracy, %")


def _errors(rows: Sequence[Row]) -> list[float]:
    return [0.0 if math.isnan(row.summary.std) else 100 * row.summary.std for row in rows]


def class_plot(headline: Headline, colors: Mapping[str, str]) -> Html | None:
    """Accuracy per class of the best method and of random, largest gain first; None without both."""
    best, random = headline.best, headline.random
    rows = [best] if random is None or random is best else [best, random]
    values = np.stack([class_means(row) for row in rows])
    order = np.argsort(-(values[0] - values[-1]) if len(rows) == 2 else -values[0], kind="stable")
    if len(order) > MOST_CLASSES:
        order = np.concatenate([order[: MOST_CLASSES // 2], order[-MOST_CLASSES // 2 :]])
    with matplotlib.rc_context(PLOT):
        figure, (axes,) = panels(1, 3.0, wide=True)
        x, width = np.arange(len(order)), 0.8 / len(rows)
        for i, (row, value) in enumerate(zip(rows, values)):
            left = x + (i - (len(rows) - 1) / 2) * width
            axes.bar(left, 100 * value[order], width * 0.92, label=row.label, color=colors[row.label])
        names = [_short(headline.block.classes[i]) for i in order]
        axes.set_xticks(x, names, rotation=0 if max(map(len, names)) * len(names) < 130 else 60)
        for tick in axes.get_xticklabels():
            tick.set_ha("center" if tick.get_rotation() == 0 else "right")
            tick.set_rotation_mode("anchor")
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(-0.6, len(order) - 0.4)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return plot_image(figure, "Accuracy per class")


def class_means(row: Row) -> np.ndarray:
    """Accuracy per class [K], float64, over all seeds of a row; nan for a class without validation images."""
    return np.mean([result.per_class for _, e in row.sources for result in e.seeds], axis=0, dtype=np.float64)


def curve_plot(blocks: Sequence[tuple[Block, int]], colors: Mapping[str, str]) -> Html | None:
    """Top-1 over optimizer steps, mean and range over all seeds: one panel per (block, IPC)."""
    blocks = [(block, ipc) for block, ipc in blocks if any(not row.stale for row in block.at(ipc))]
    if not blocks:
        return None
    with matplotlib.rc_context(PLOT):
        figure, grid = panels(len(blocks), 2.7)
        for axes, (block, ipc) in zip(grid, blocks):
            axes.set_title(f"{block.protocol} \u00b7 {block.student} \u00b7 IPC {ipc}")
            for row in block.at(ipc):
                if not row.stale:
                    _curve(axes, row, colors[row.label])
            axes.set_xlabel("optimizer steps")
            axes.set_ylabel("top-1 accuracy, %")
            axes.legend(fontsize=8)
        return plot_image(figure, "Learning curves")


def _curve(axes: Axes, row: Row, color: str) -> None:
    curves = [result.curve for _, e in row.sources for result in e.seeds if result.curve]
    # Seeds of one row share their checks; where budgets differ only the common steps can be averaged.
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves))) if curves else []
    if not steps:
        return
    values = 100 * np.array([[dict(curve)[step] for step in steps] for curve in curves])
    style = {"linestyle": "--"} if row.is_full else {}
    marker = "o" if len(steps) < 12 else None
    name = "full data" if row.is_full else row.label
    axes.plot(steps, values.mean(0), color=color, label=name, marker=marker, markersize=3, linewidth=1.4, **style)
    if len(curves) > 1:
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.13, linewidth=0)


def panels(count: int, height: float, *, wide: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high, up to three beside each other, or one if `wide`."""
    across = 1 if wide else 2 if count in (1, 2, 4) else 3
    lines = math.ceil(count / across)
    figure = Figure(figsize=(WIDTH, height * lines), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    grid = figure.subplots(lines, across, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def plot_image(figure: Figure, alt: str) -> Html:
    """The figure as an SVG inside the page; equal figures give equal bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    data = base64.b64encode(sink.getvalue()).decode()
    return el("img", src=f"data:image/svg+xml;base64,{data}", alt=alt, class_="plot")


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"
