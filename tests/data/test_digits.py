"""The packaged digits are scikit-learn's, enlarged, split by class without overlap, and written once."""

import numpy as np
import pytest

from raydd.data import digits
from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDD_CACHE", str(root))
        yield root


def test_splits_are_stratified_and_disjoint(cache):
    train, val = open_source("digits"), open_source("digits", "val")
    assert train.classes == val.classes == tuple("0123456789")
    assert len(train) + len(val) == 1797
    shares = np.array(val.counts()) / (np.array(val.counts()) + np.array(train.counts()))
    assert np.abs(shares - 0.2).max() < 0.01
    assert not set(train.index()["key"].to_pylist()) & set(val.index()["key"].to_pylist())


def test_pictures_average_back_to_the_original_values(cache):
    from sklearn.datasets import load_digits

    data = load_digits()
    val = load_images(open_source("digits", "val"), 32)
    order = np.flatnonzero(digits.split_of(data.target))
    rows = [int(key.rsplit(":", 1)[1]) for key in val.keys]
    blocks = val.images[:, 0].float().reshape(-1, 8, 4, 8, 4).mean((2, 4)).numpy() * (16 / 255)
    assert np.abs(blocks - data.images[order[rows]]).mean() < 1  # of 16 levels; bicubic overshoot is clipped
    assert np.abs(blocks - data.images[order[rows[::-1]]]).mean() > 3
    np.testing.assert_array_equal(val.labels, data.target[order[rows]])


def test_written_once(cache):
    path = cache / "digits-32" / "train" / "train.parquet"
    digits.materialize()
    before = path.stat().st_mtime_ns
    open_source("digits")
    assert path.stat().st_mtime_ns == before


def test_units_are_read_where_the_files_are_not_yet(cache, tmp_path, monkeypatch):
    unit = open_source("digits").units()[0]
    expected = unit.read()
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path))
    assert unit.read().equals(expected)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"RAYDD_CACHE|a file has that name"):
        open_source("digits")
