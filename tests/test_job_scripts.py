"""The scripts of jobs/ as a person runs them on one machine, without Ray: the whole chain, and again."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from pipelines.conftest import digit_bytes, write_tree
from priors import write_tiny_prior

from raydd.data.subsets import SUBSETS, WNIDS
from raydd.models.prior.pipeline import load_prior
from raydd.store.distilled import read_class
from raydd.store.learned import read_learned
from raydd.store.run import Run
from raydd.store.trajectories import open_experts

ROOT = Path(__file__).parents[1]


def script(name: str, *args: object) -> str:
    command = [sys.executable, ROOT / "jobs" / name, *map(str, args), "--executor", "local"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_dsco_from_latents_to_a_report_and_again(tmp_path, digits_teacher):
    tree, prior = write_tree(tmp_path / "tree"), write_tiny_prior(tmp_path / "prior", ("0", "1", "2"))
    pairs = tmp_path / "rows.json"
    pairs.write_text('{"0": 0, "1": 1, "2": 2}')
    sampling = ("--steps", 3, "--guidance", 2, "--guidance-channels", "all", "--prior", prior, "--class-map", pairs)
    judged = ("--students", "convnet3", "--protocol", "quick@2", "--seeds", 1, "--no-flip", "--size", 16)
    teacher = ("--teacher", digits_teacher, "--teacher-rows", 0, 1, 2)
    plan = ("--data", tree, "--out", tmp_path / "out", "--ipc", 2, "--fraction", 0.5, *sampling, *judged, *teacher)
    printed = script("dsco_in1k.py", *plan)
    assert "dsco+dope" in printed and "random+dope" in printed and "report: " in printed
    runs = {path.parent.parent.name for path in (tmp_path / "out").glob("*/distilled/dataset.json")}
    assert runs == {f"{name}-ipc2-seed0{end}" for name, end in product()}
    doped = json.loads((tmp_path / "out" / "dsco-ipc2-seed0-doped-0.5" / "distilled" / "dataset.json").read_text())
    assert doped["images"] == 24 and doped["doping"]["originals"] == 18 and doped["ipc"] == 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = script("dsco_in1k.py", *plan)
    assert "dsco+dope" in again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}


def write_imagenette(root: Path) -> tuple[Path, tuple[str, ...]]:
    """An ImageFolder whose class folders are called as those of ImageNette, with digits inside; and their names."""
    names = tuple(WNIDS["imagenette"].split())
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i, data in enumerate(digit_bytes(split, label, count)):
                (root / split / name / f"{i}.png").write_bytes(data)
    return root, names


def test_ld3m_on_a_subset_and_again(tmp_path):
    """Labels by ImageNet's indices, a row for every control, one report; nothing is done twice."""
    data, names = write_imagenette(tmp_path / "data")
    prior = write_tiny_prior(tmp_path / "prior", tuple(f"label {i}" for i in range(1000)), 8)
    quick = ("--size", 8, "--steps", 2, "--iterations", 2, "--matcher", "convnet1", "--prior", prior)
    judged = ("--students", "convnet3", "--protocol", "glad@2", "--seeds", 1, "--no-flip")
    out = tmp_path / "out"
    plan = ("--data", data, "--out", out, "--subsets", "nette,imagenette", *quick, *judged)
    printed = script("ld3m_subsets.py", *plan)
    rows = ("random", "ld3m-start", "ld3m-pixels", "ld3m-autoencoder", "ld3m")
    assert {path.parent.parent.name for path in out.glob("imagenette/*/distilled/dataset.json")} == {
        f"{name}-ipc1-seed0" for name in rows
    }
    assert all(f"{name} " in printed for name in rows) and f"report: {out}/imagenette/report.html" in printed
    assert json.loads((out / "imagenette" / "class_map.json").read_text()) == dict(zip(names, SUBSETS["imagenette"]))
    # The condition that an image of a class starts from is the row of the class's index in ImageNet.
    rows = load_prior(prior).conditions(torch.tensor(SUBSETS["imagenette"])).half()
    start = Run(str(out / "imagenette" / "ld3m-start-ipc1-seed0"))
    assert all(torch.equal(read_learned(start, label).conditions[0], rows[label]) for label in range(10))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert "ld3m-start" in script("ld3m_subsets.py", *plan)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} and len(before) == 50


def test_ld3m_along_experts_of_any_source(tmp_path, digits_teacher):
    """Trajectories are trained first, normalized as the teacher is, by which images of k-means join the rows."""
    tree, prior = write_tree(tmp_path / "tree"), write_tiny_prior(tmp_path / "prior", ("0", "1", "2"))
    quick = ("--size", 16, "--steps", 1, "--iterations", 1, "--matcher", "convnet1", "--experts", 1, "--loss", "mtt")
    judged = ("--students", "convnet3", "--protocol", "glad@2", "--seeds", 1, "--no-flip")
    given = ("--data", tree, "--subsets", "None", "--prior", prior, "--class-map", "None", "--teacher", digits_teacher)
    printed = script("ld3m_subsets.py", "--out", tmp_path / "out", *given, *quick, *judged)
    rows = ("random", "kmeans", "ld3m-start", "ld3m-pixels-mtt", "ld3m-autoencoder-mtt", "ld3m-mtt")
    assert all(f"{name} " in printed for name in rows) and (tmp_path / "out" / "whole" / "report.html").exists()
    assert open_experts(str(tmp_path / "out" / "whole" / "experts")).count == 1


def test_ld3m_from_the_images_of_k_means(tmp_path, digits_teacher):
    tree, prior = write_tree(tmp_path / "tree"), write_tiny_prior(tmp_path / "prior", ("0", "1", "2"))
    quick = ("--size", 16, "--steps", 1, "--iterations", 1, "--matcher", "convnet1", "--start", "kmeans")
    judged = ("--students", "convnet3", "--protocol", "glad@2", "--seeds", 1, "--no-flip")
    given = ("--data", tree, "--subsets", "None", "--prior", prior, "--class-map", "None", "--teacher", digits_teacher)
    printed = script("ld3m_subsets.py", "--out", tmp_path / "out", *given, *quick, *judged)
    chosen = Run(str(tmp_path / "out" / "whole" / "kmeans-ipc1-seed0"))
    for name in ("ld3m-start", "ld3m-pixels", "ld3m-autoencoder", "ld3m"):
        made = Run(str(tmp_path / "out" / "whole" / f"{name}-from-kmeans-ipc1-seed0"))
        keys = [read_class(run, 1)[0].source_keys for run in (made, chosen)]
        assert keys[0] == keys[1]
    assert "ld3m-from-kmeans " in printed


def product() -> list[tuple[str, str]]:
    """Methods, and whether each is doped."""
    return [("random", ""), ("random", "-doped-0.5"), ("prior", ""), ("dsco", ""), ("dsco", "-doped-0.5")]
