"""Regrouping gives the same rows whatever memory it may use and wherever it was killed; dropped images are listed."""

import numpy as np
import pyarrow as pa
import pytest

from raydd.keyed import numpy_rng
from raydd.store import filesystem as files
from raydd.store import scores
from raydd.store.run import Run


def unit_table(unit: int, rows: int = 20) -> pa.Table:
    rng = numpy_rng("unit", unit)
    keys = [f"{unit:02d}/{i:03d}" for i in rng.permutation(rows)]
    return pa.table({"key": keys, "label": rng.integers(0, 3, rows), "gradnorm": rng.random(rows, np.float32)})


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")


def commit_all(run: Run, order=range(4)) -> pa.Table:
    for unit in order:
        scores.commit_unit(run, f"u{unit}", None, unit_table(unit))
    return pa.concat_tables([unit_table(unit) for unit in range(4)])


def rows(run: Run) -> list[dict]:
    return scores.read_all(run, range(3)).to_pylist()


def test_regroup_keeps_every_row_under_its_label(run):
    everything = commit_all(run)
    scores.regroup(run)
    expected = sorted(everything.to_pylist(), key=lambda row: (row["label"], row["key"]))
    assert rows(run) == expected
    assert files.list_files(run.path("state", "scores")) == []
    assert scores.committed_units(run) == {"u0", "u1", "u2", "u3"}


@pytest.mark.parametrize(("max_bytes", "order"), [(1, [0, 1, 2, 3]), (1500, [3, 1, 0, 2]), (1 << 29, [2, 3, 1, 0])])
def test_regroup_depends_neither_on_memory_nor_on_order(tmp_path, max_bytes, order):
    plain, other = Run(str(tmp_path / "a")), Run(str(tmp_path / "b"))
    commit_all(plain)
    commit_all(other, order)
    scores.regroup(plain)
    scores.regroup(other, max_bytes=max_bytes)
    assert rows(plain) == rows(other)


@pytest.mark.parametrize("survivors", [["unit-u2.parquet"], ["unit-u0.parquet", "unit-u3.parquet"]])
def test_regroup_after_a_kill_duplicates_nothing(tmp_path, survivors):
    run = Run(str(tmp_path / "run"))
    commit_all(run)
    waiting = {name: files.read_bytes(run.path("state", "scores", name)) for name in survivors}
    scores.regroup(run)
    before = rows(run)
    for name, data in waiting.items():
        files.write_atomic(run.path("state", "scores", name), data)
    scores.regroup(run)
    assert rows(run) == before and scores.committed_units(run) == {"u0", "u1", "u2", "u3"}


def test_later_units_join_those_that_are_grouped(run):
    commit_all(run, [0, 1])
    scores.regroup(run)
    commit_all(run, [2, 3])
    assert scores.committed_units(run) == {"u0", "u1", "u2", "u3"}
    scores.regroup(run)
    assert len(rows(run)) == 80


def test_units_of_one_class_need_no_regrouping(run):
    table = unit_table(0).set_column(1, "label", pa.array([2] * 20))
    scores.commit_unit(run, "only", 2, table)
    scores.commit_unit(run, "only", 2, table)
    assert scores.read_label(run, 2, ["key"])["key"].to_pylist() == sorted(table["key"].to_pylist())
    assert scores.read_label(run, 1) is None


def test_dropped_images_are_listed_and_a_wholly_broken_unit_is_committed(run):
    scores.commit_unit(run, "a", 0, unit_table(0), dropped=[("z", "truncated"), ("b", "empty file")])
    scores.commit_unit(run, "b", 1, None, dropped=[("c", "no image")])
    assert scores.read_dropped(run) == [("b", "empty file"), ("c", "no image"), ("z", "truncated")]
    assert scores.committed_units(run) == {"a", "b"}
