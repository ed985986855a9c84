"""The scripts of jobs/ as a person runs them on one machine, without Ray: the whole chain, and again."""

import json
import subprocess
import sys
from pathlib import Path

from pipelines.conftest import write_tree
from priors import write_tiny_prior

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


def product() -> list[tuple[str, str]]:
    """Methods, and whether each is doped."""
    return [("random", ""), ("random", "-doped-0.5"), ("prior", ""), ("dsco", ""), ("dsco", "-doped-0.5")]
