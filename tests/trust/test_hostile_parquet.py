"""Parquet files whose columns hold pickles, or more than they say."""

import io
import pickle
from pathlib import Path

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import raydd, refused
from hostile import LOCAL, SMALL

from raydd.errors import UserError
from raydd.store import scores
from raydd.store.run import Run


@pytest.fixture(scope="module")
def ray_types():
    """Ray's Arrow types, registered as in every worker."""
    pytest.importorskip("ray.data")


def pickled_column(canary: Path, rows: int) -> pa.Array:
    return pa.array([pickle.dumps(hostile.Touch(canary))] * rows, pa.large_binary())


def test_a_pickled_column_does_run_code(ray_types, tmp_path):
    """What the next tests are about: plain pyarrow, in a process that has imported ray.data."""
    canary = tmp_path / "canary"
    data = hostile.parquet({"key": pickled_column(canary, 1)}, {"key": hostile.PICKLED})
    pq.ParquetFile(io.BytesIO(data)).read().to_pylist()
    assert canary.exists()


@pytest.mark.parametrize("column", ["image", "label", "other"])
def test_sources_with_pickled_columns(column, ray_types, canary, tmp_path):
    columns = {"image": pa.array([hostile.picture(i) for i in range(6)]), "label": pa.array([0, 1] * 3)}
    columns |= {column: pickled_column(canary, 6)}
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    path.write_bytes(hostile.parquet(columns, {column: hostile.PICKLED}))
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert f"{path} declares Arrow extension types" in line


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type"])
def test_sources_with_pickled_type_metadata(name, ray_types, canary, tmp_path):
    columns = {"image": pa.array([hostile.picture(i) for i in range(6)]), "label": pa.array([0, 1] * 3)}
    data = hostile.parquet(columns, {"label": name}, pickle.dumps(hostile.Touch(canary)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    words = ("--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "declares Arrow extension types" in refused("distill", "random", *words)


def test_runs_with_pickled_columns(ray_types, canary, run, tmp_path):
    path = run / "distilled" / "label=0" / "images.parquet"
    table = pq.ParquetFile(path).read()
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns |= {"soft_label": pickled_column(canary, table.num_rows)}
    path.write_bytes(hostile.parquet(columns, {"soft_label": hostile.PICKLED}))
    judge = ("--val", "digits", "--protocol", "hard@1", "--students", "convnet3", "--seeds", 1, *LOCAL)
    for words in (
        ("export", "--run", run, "--out", tmp_path / "a", "--format", "imagefolder"),
        ("export", "--run", run, "--out", tmp_path / "b", "--format", "huggingface"),
        ("report", "--run", run),
    ):
        outcome = raydd(*words)
        assert "Traceback" not in outcome.err and not canary.exists(), words
    assert "declares Arrow extension types" in refused(
        "export", "--run", run, "--out", tmp_path / "c", "--format", "webdataset"
    )
    assert refused("evaluate", "--run", run, *judge)


def test_score_tables_with_pickled_columns(ray_types, canary, tmp_path):
    run = Run(str(tmp_path))
    folder = tmp_path / "scores" / "label=0"
    folder.mkdir(parents=True)
    (folder / "unit-x.parquet").write_bytes(
        hostile.parquet({"key": pickled_column(canary, 2)}, {"key": hostile.PICKLED})
    )
    with pytest.raises(UserError, match="extension types"):
        scores.read_label(run, 0)


def test_parquet_that_states_the_impossible(tmp_path):
    """A label column of 10^8 equal values is a few kilobytes, and gigabytes in Python."""
    labels = pa.array(np.zeros(10**8, np.int8))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    pq.write_table(pa.table({"label": labels, "image": pa.nulls(len(labels), pa.binary())}), path, row_group_size=10**8)
    assert path.stat().st_size < 10**6
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "states 100,000,000 rows in" in line


def test_parquet_that_inflates(tmp_path):
    images = [hostile.picture(i) for i in range(4)] + [bytes(150 << 20)] * 2
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    table = pa.table({"label": ["ant", "bee"] * 3, "image": images})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 10**6
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "encoded images do not; remove the file" in line
