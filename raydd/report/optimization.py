"""How distilled images were optimized: losses, and each image at its start, before the first step, and after the last.

Shown for runs that keep what they learned (`store/learned.py`). Losses are means over the classes of a run. The one
that was stepped on is noisy, because every iteration draws a new network, real batch and augmentation; the held-out one
is on draws that are never stepped on, and is shown relative to its first value, so that runs of different losses can
stand in one panel (ld3m.md, sections 12 and 13).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from raydd.distill.encode import encode
from raydd.evaluate.record import RunResults
from raydd.report.facts import Groups
from raydd.report.html import Html, details, el, join, table
from raydd.report.plots import MOST_INSIDE, panels, plot_image
from raydd.report.sheets import GAP, origin_text, shown_size, thumbnail
from raydd.report.style import LINE, PLOT
from raydd.store import distilled
from raydd.store.learned import Curves, learned_labels, read_curves, read_learned

MOST_CLASSES = 10
MOST_IMAGES = 5
# Longer curves are drawn as means of neighbors.
MOST_POINTS = 300
STYLES = ("-", "--", ":", "-.")
# Losses further apart than this need a logarithmic axis.
FAR = 10.0
RELATIVE = "Held-out loss, relative"
# Width of a stage's name, in CSS pixels.
STAGE = 56

PLOT_NOTE = (
    "Means over the classes of a run, one line per run. Held-out: on networks, real images and augmentations that no "
    "step was taken on, divided by its value before the first step."
)
SHEET_NOTE = (
    "start: the image that the latent started from. before: the same through the generator, before the first step. "
    "after: the distilled image."
)


@dataclasses.dataclass(frozen=True)
class Descent:
    """What one run's optimization recorded: loss float64 [k,2] and heldout [m,2], rows of (iteration, mean)."""

    label: str
    ipc: int
    result: RunResults
    labels: tuple[int, ...]
    loss: np.ndarray
    heldout: np.ndarray
    numbers: dict[str, int]

    @property
    def relative(self) -> np.ndarray:
        """The held-out loss [m,2] divided by its first value; [0,2] where that is none to divide by."""
        first = self.heldout[0, 1] if len(self.heldout) else 0.0
        return self.heldout / (1.0, first) if np.isfinite(first) and first > 0 else np.zeros((0, 2))


def optimization_parts(groups: Groups, colors: Mapping[str, str]) -> list[Html | None]:
    """Plot, table and one sheet per row of the accuracy table; [] where no run keeps what it learned."""
    descents = [
        read_descent(label, ipc, result, labels)
        for (label, ipc), results in groups.items()
        for result in results
        if (labels := _labels(result))
    ]
    if not descents:
        return []
    # As among the images, a row is shown by its run of the lowest distillation seed.
    firsts = {(d.label, d.ipc): d for d in reversed(descents)}
    sheets = [steps_sheet(firsts[key], open_=i == 0) for i, key in enumerate(key for key in groups if key in firsts)]
    return [loss_plot(descents, colors), _numbers_table(descents), *sheets]


def _labels(result: RunResults) -> tuple[int, ...]:
    """Classes with a file, of those that the set has; a file of another set may have been left behind."""
    return tuple(label for label in learned_labels(result.run) if label < len(result.manifest["classes"]))


def read_descent(label: str, ipc: int, result: RunResults, labels: Sequence[int]) -> Descent:
    """The curves of a run's classes `labels`, averaged; raises `UserError` for a damaged file."""
    curves = [found for i in labels if (found := read_curves(result.run, i))]
    loss = mean_curve([(c.iteration.numpy(), c.loss.numpy()) for c in curves])
    heldout = mean_curve([(c.heldout_iteration.numpy(), c.heldout.numpy()) for c in curves])
    return Descent(label, ipc, result, tuple(labels), loss, heldout, _numbers(curves))


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Rows (iteration, mean value) float64 [k,2] over the iterations that all curves have; empty ones do not count."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return np.zeros((0, 2))
    shared = functools.reduce(np.intersect1d, (iterations for iterations, _ in curves))
    values = [value[np.isin(iterations, shared)] for iterations, value in curves]
    return np.stack([shared, np.mean(values, axis=0, dtype=np.float64)], 1).astype(np.float64)


def thinned(curve: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """A curve [k,2] as at most `most` means of neighboring points."""
    return curve if len(curve) <= most else np.stack([part.mean(0) for part in np.array_split(curve, most)])


def _numbers(curves: Sequence[Curves]) -> dict[str, int]:
    """Learned numbers per image by part, as the first class tells; {} where it does not."""
    found = curves[0].facts.get("numbers_per_image") if curves else None
    return {"": found} if isinstance(found, int) else dict(found or {})


def loss_plot(descents: Sequence[Descent], colors: Mapping[str, str]) -> Html | None:
    """Loss, and held-out loss relative to its first value, over iterations; None without curves."""
    drawn = {"Loss": [d.loss for d in descents], RELATIVE: [d.relative for d in descents]}
    drawn = {title: curves for title, curves in drawn.items() if any(len(curve) for curve in curves)}
    if not drawn:
        return None
    with matplotlib.rc_context(PLOT):
        figure, grid = panels(len(drawn), 2.9)
        for axes, (title, curves) in zip(grid, drawn.items()):
            axes.set_title(title)
            axes.set_xlabel("iterations")
            _draw(axes, descents, curves, colors)
            if title == RELATIVE:
                axes.axhline(1, color=LINE, linewidth=1, zorder=0)
        names = grid[-1].get_legend_handles_labels()[1]
        beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if len(names) > MOST_INSIDE else {}
        grid[-1].legend(fontsize=8, **beside)
        return join([plot_image(figure, "Losses over iterations"), el("p", PLOT_NOTE, class_="note")])


def _draw(axes: Axes, descents: Sequence[Descent], curves: Sequence[np.ndarray], colors: Mapping[str, str]) -> None:
    ipcs = sorted({d.ipc for d in descents})
    named: set[str] = set()
    for descent, curve in zip(descents, curves):
        name = descent.label + (f", IPC {descent.ipc}" if len(ipcs) > 1 else "")
        style = STYLES[ipcs.index(descent.ipc) % len(STYLES)]
        # Seeds of one row share its color, style and entry.
        label = None if name in named else name
        x, y = thinned(curve).T
        axes.plot(x, y, style, color=colors[descent.label], label=label, linewidth=1.2)
        named.add(name)
    values = np.concatenate([curve[:, 1] for curve in curves])
    values = values[np.isfinite(values)]
    middles = [np.nanmedian(curve[:, 1]) for curve in curves if np.isfinite(curve[:, 1]).any()]
    if len(values) and values.min() > 0 and max(middles) > FAR * min(middles):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _numbers_table(descents: Sequence[Descent]) -> Html:
    rows = []
    for label, ipc in dict.fromkeys((d.label, d.ipc) for d in descents):
        runs = [d for d in descents if (d.label, d.ipc) == (label, ipc)]
        iterations = max((int(curve[-1, 0]) for d in runs for curve in (d.loss, d.heldout) if len(curve)), default=0)
        ends = [d.relative[-1, 1] for d in runs if len(d.relative)]
        kept = f"{np.mean(ends):.3f}" if ends else "-"
        rows.append((label, ipc, len(runs), len(runs[0].labels), f"{iterations:,}", kept, *_numbers_cells(runs[0])))
    heads = ("method", "IPC", "runs", "classes", "iterations", "held-out, last / first", "learned per image")
    return table((*heads, "of the picture's numbers"), rows)


def _numbers_cells(descent: Descent) -> tuple[Html | str, str]:
    total = sum(descent.numbers.values())
    if not total:
        return "-", "-"
    parts = ", ".join(f"{name} {count:,}" for name, count in descent.numbers.items() if name)
    picture = 3 * int(descent.result.manifest.get("size") or 0) ** 2
    share = f"{100 * total / picture:.1f} % of {picture:,}" if picture else "-"
    return join([f"{total:,}", el("small", parts) if parts else None]), share


def steps_sheet(descent: Descent, *, open_: bool = False) -> Html:
    """Per class a block with a row for each stage that the run keeps: start, before, after."""
    result, manifest = descent.result, descent.result.manifest
    size = shown_size(int(manifest.get("size") or 64))
    shown = descent.labels[:MOST_CLASSES]
    most = max(manifest["counts"].values(), default=0)
    left_out = [f"first {MOST_IMAGES} of {most} images"] * (most > MOST_IMAGES)
    left_out += [f"first {len(shown)} of {len(descent.labels)} classes"] * (len(descent.labels) > len(shown))
    facts = ", ".join([f"IPC {descent.ipc}, seed {result.seed}", *left_out])
    title = join([f"{descent.label}, before and after ", el("span", facts)])
    classes = (_class_steps(result, label, size) for label in shown)
    return details(title, el("div", *classes, class_="sheet steps"), el("p", SHEET_NOTE, class_="note"), open_=open_)


def _class_steps(result: RunResults, label: int, size: int) -> Html:
    name, found = result.manifest["classes"][label], read_learned(result.run, label)
    rows = {}
    for stage, pictures in (("start", found and found.start), ("before", found and found.initial)):
        if pictures is not None:
            rows[stage] = [thumbnail(encode(p, "png"), size, f"{name}, {stage}") for p in pictures[:MOST_IMAGES]]
    if result.manifest["counts"].get(name):
        images = distilled.read_class(result.run, label)[:MOST_IMAGES]
        rows["after"] = [thumbnail(image.data, size, f"{name}, after", origin_text(image)) for image in images]
    lines = [el("div", el("div", stage), *images, class_="class") for stage, images in rows.items()]
    widest = max(map(len, rows.values()), default=0)
    heading = el("p", name, title=name, style=f"width:{STAGE + widest * (size + GAP)}px")
    return el("div", heading, *lines)
