"""The section draws the means that the files hold, shows the stored pictures stage by stage, and is absent without."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_runs import CLASSES, digit, make_run

from raydd.errors import UserError
from raydd.evaluate.record import read_results
from raydd.report import optimization
from raydd.report.optimization import (
    MOST_CLASSES,
    MOST_IMAGES,
    Descent,
    loss_plot,
    mean_curve,
    optimization_parts,
    read_descent,
    steps_sheet,
    thinned,
)
from raydd.report.page import write_report
from raydd.store import filesystem as files
from raydd.store import learned
from raydd.store.learned import Learned, write_learned
from raydd.store.run import Run

COLORS = {"a": "#111111", "b": "#222222"}


def pictures(label: int, stage: int, n: int) -> torch.Tensor:
    return torch.full((n, 3, 32, 32), 20 * label + stage, dtype=torch.uint8)


def example(label: int, n: int, scale: float = 1.0) -> Learned:
    return Learned(
        latents=torch.zeros(n, 1, 4, 4),
        start=pictures(label, 1, n),
        initial=pictures(label, 2, n),
        iteration=torch.arange(4),
        loss=scale * (label + 1) * torch.tensor([8.0, 4.0, 2.0, 1.0]),
        heldout_iteration=torch.tensor([0, 4]),
        heldout=scale * (label + 1) * torch.tensor([4.0, 3.0]),
        facts={"numbers_per_image": {"latent": 16, "condition": 4}},
    )


def learned_run(uri: str, ipc: int = 2, seed: int = 0, scale: float = 1.0) -> Run:
    run = make_run(uri, "infoutil", ipc, seed)
    for label in range(10):
        write_learned(run, label, example(label, ipc, scale))
    return run


def descent_of(run: Run, label: str = "a") -> Descent:
    result = read_results(run)
    return read_descent(label, result.ipc, result, range(10))


def shown(html: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in data]


@pytest.fixture
def drawn(monkeypatch):
    """The figures as drawn, instead of their images."""
    figures, image = [], optimization.plot_image
    monkeypatch.setattr(optimization, "plot_image", lambda figure, alt: figures.append(figure) or image(figure, alt))
    return figures


def test_means_are_over_the_iterations_that_all_classes_have():
    first = (np.array([0, 2, 4, 6]), np.array([1.0, 2.0, 3.0, 4.0], np.float32))
    second = (np.array([2, 3, 6]), np.array([10.0, 0.0, 20.0], np.float32))
    empty = (np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert mean_curve([first, second, empty]).tolist() == [[2, 6], [6, 12]]
    assert mean_curve([empty]).shape == mean_curve([]).shape == (0, 2)
    # float32 would lose the ones beside 2^25.
    many = [(np.array([0]), np.array([value], np.float32)) for value in (2.0**25, 1, 1, 0)]
    assert mean_curve(many)[0, 1] == (2**25 + 2) / 4


def test_long_curves_are_means_of_neighbors():
    curve = np.stack([np.arange(1000.0), np.arange(1000.0) ** 2], 1)
    short = thinned(curve, 100)
    assert short.shape == (100, 2) and short[0].tolist() == [4.5, 28.5]
    assert short.mean(0) == pytest.approx(curve.mean(0))
    assert thinned(curve[:7], 7) is not None and (thinned(curve[:7], 7) == curve[:7]).all()


def test_one_line_per_run_of_the_means_over_classes(tmp_path, drawn):
    runs = [descent_of(learned_run(str(tmp_path / f"{i}"), seed=i, scale=s), "a") for i, s in enumerate((1, 3))]
    runs.append(descent_of(learned_run(str(tmp_path / "b"), ipc=1), "b"))
    html = loss_plot(runs, COLORS)
    assert html.startswith('<img src="data:image/svg+xml;base64,')
    loss, heldout = drawn[0].axes
    lines = loss.lines
    # Classes 0 .. 9 have 1 .. 10 times the curve: 5.5 on average.
    assert [line.get_xydata().tolist() for line in lines] == [
        [[i, 5.5 * scale * 8 / 2**i] for i in range(4)] for scale in (1, 3, 1)
    ]
    assert [line.get_color() for line in lines] == ["#111111", "#111111", "#222222"]
    assert lines[0].get_linestyle() == lines[1].get_linestyle() != lines[2].get_linestyle()
    assert [line.get_xydata().tolist() for line in heldout.lines[:3]] == [[[0, 1], [4, 0.75]]] * 3
    assert [text.get_text() for text in heldout.get_legend().get_texts()] == ["a, IPC 2", "b, IPC 1"]
    assert loss.get_yscale() == "linear"


def test_losses_far_apart_get_a_logarithmic_axis(tmp_path, drawn):
    runs = [descent_of(learned_run(str(tmp_path / str(s)), scale=s), "a") for s in (1, 50)]
    loss_plot(runs, COLORS)
    loss, heldout = drawn[0].axes
    assert loss.get_yscale() == "log" and heldout.get_yscale() == "linear"
    drawn[0].canvas.draw()
    # Mathematical text is off in the report: a tick must not show markup.
    assert not any("$" in tick.get_text() for tick in loss.get_yticklabels(which="both"))


@pytest.mark.parametrize("first", [0.0, float("nan"), float("inf")])
def test_a_loss_that_cannot_be_divided_by_is_left_out(tmp_path, drawn, first):
    run = learned_run(str(tmp_path / "run"))
    for label in range(10):
        write_learned(run, label, dataclasses.replace(example(label, 2), heldout=torch.tensor([first, 1.0])))
    descent = descent_of(run)
    assert descent.relative.shape == (0, 2)
    loss_plot([descent], COLORS)
    assert [axes.get_title("left") for axes in drawn[0].axes if axes.get_visible()] == ["Loss"]
    bare = dataclasses.replace(descent, loss=np.zeros((0, 2)), heldout=np.zeros((0, 2)))
    assert loss_plot([bare], COLORS) is None


def test_each_class_shows_start_before_and_after(tmp_path):
    run = learned_run(str(tmp_path / "run"))
    html = steps_sheet(descent_of(run), open_=True)
    pixels = shown(html)
    assert (
        len(pixels) == 10 * 3 * 2 and html.startswith("<details open>") and "first" not in html.split("</summary>")[0]
    )
    for label in range(10):
        start, before, after = (pixels[6 * label + 2 * i : 6 * label + 2 * i + 2] for i in range(3))
        assert {int(v) for p in start for v in np.unique(p)} == {20 * label + 1}
        assert {int(v) for p in before for v in np.unique(p)} == {20 * label + 2}
        for i, image in enumerate(after):
            assert (image == np.asarray(Image.open(io.BytesIO(digit(label, i))))).all()
    assert re.findall(r"<div>(\w+)</div>", html) == ["start", "before", "after"] * 10
    assert f"{CLASSES[3]}, after" in html


def test_stages_that_are_not_kept_have_no_row(tmp_path):
    run = learned_run(str(tmp_path / "run"))
    write_learned(run, 0, dataclasses.replace(example(0, 2), start=None))
    write_learned(run, 1, dataclasses.replace(example(1, 2), start=None, initial=None))
    assert len(shown(steps_sheet(descent_of(run)))) == 60 - 2 - 4


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    run = learned_run(str(tmp_path / "run"), ipc=MOST_IMAGES + 1)
    monkeypatch.setattr(optimization, "MOST_CLASSES", 4)
    html = steps_sheet(descent_of(run))
    assert f"first {MOST_IMAGES} of {MOST_IMAGES + 1} images" in html and "first 4 of 10 classes" in html
    assert len(shown(html)) == 4 * 3 * MOST_IMAGES and MOST_CLASSES >= 10


def test_numbers_per_image_beside_the_pictures(tmp_path):
    runs = [learned_run(str(tmp_path / f"{seed}"), seed=seed) for seed in range(2)]
    groups = {("a", 2): [read_results(run) for run in runs]}
    html = "".join(part for part in optimization_parts(groups, COLORS) if part)
    assert "<td>20<small>latent 16, condition 4</small></td><td>0.7 % of 3,072</td>" in html
    assert "<td>4</td><td>0.750</td>" in html and html.count("before and after") == 1 and "seed 0" in html
    for label in range(10):
        write_learned(runs[0], label, dataclasses.replace(example(label, 2), facts={"numbers_per_image": 5000}))
    html = "".join(part for part in optimization_parts(groups, COLORS) if part)
    assert "<td>5,000</td><td>162.8 % of 3,072</td>" in html
    for label in range(10):
        write_learned(runs[0], label, dataclasses.replace(example(label, 2), facts={}))
    assert "<td>-</td><td>-</td>" in "".join(part for part in optimization_parts(groups, COLORS) if part)


def test_the_page_has_the_section_where_something_was_learned(tmp_path):
    plain, run = make_run(str(tmp_path / "plain"), "random", 2, 0), learned_run(str(tmp_path / "run"))
    # A file of a class that the set does not have may be left of another set.
    write_learned(run, 10, example(0, 2))
    text = files.read_bytes(write_report([plain, run], str(tmp_path / "a.html"), "t")).decode()
    titles = re.findall(r"<h2>([^<]+)</h2>", text)
    assert titles[titles.index("Images") + 1] == "Optimization" and text.count("before and after") == 1
    assert text == files.read_bytes(write_report([plain, run], str(tmp_path / "b.html"), "t")).decode()
    assert "Optimization" not in files.read_bytes(write_report([plain], str(tmp_path / "c.html"), "t")).decode()
    files.write_atomic(learned.path(run, 3), b"damaged")
    with pytest.raises(UserError, match=r"label=3\.safetensors is damaged"):
        write_report([run], str(tmp_path / "d.html"), "t")
