"""Every layout reads the same at every place; units cover it once, pickle, and do not depend on listing order."""

import http.server
import pickle
import threading

import numpy as np
import pytest
from small_set import CLASSES, labeled_images, layout_files, parquet_bytes, write_files

from raydd.data import splits
from raydd.data.source import check_same_classes, open_source
from raydd.data.subsets import SUBSETS
from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.reach import Unreachable

LAYOUTS = ["imagefolder", "parquet", "webdataset"]


def contents_of(source):
    """(class name, bytes) of every image, read by units."""
    tables = [pickle.loads(pickle.dumps(unit)).read() for unit in source.units(rows=5)]
    return sorted(
        (source.classes[label], data)
        for table in tables
        for label, data in zip(table["label"].to_pylist(), table["bytes"].to_pylist(), strict=True)
    )


EXPECTED = sorted((CLASSES[label], data) for label, _, data in labeled_images())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_and_memory_agree(tmp_path, memory, layout):
    local = open_source(write_files(tmp_path, layout_files(layout)))
    remote = open_source(write_files(memory, layout_files(layout)))
    assert local.kind == layout
    assert contents_of(local) == contents_of(remote) == EXPECTED
    assert local.index().equals(remote.index())
    assert local.fingerprint == remote.fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_object_store(s3, tmp_path, layout):
    root = write_files(f"{s3}/{layout}", {f"train/{k}": v for k, v in layout_files(layout).items()})
    source = open_source(root)
    assert contents_of(source) == EXPECTED
    assert source.fingerprint == open_source(write_files(tmp_path, layout_files(layout))).fingerprint
    files.remove_tree(files.join(root, "train", next(iter(layout_files(layout)))))
    assert [data for _, data in contents_of(source)].count(b"") == {"imagefolder": 1}.get(layout, 6)


def test_imagenet_subset_in_an_object_store(s3):
    pytest.importorskip("s3fs").S3FileSystem().mkdir("in1k")
    rows = [(label, "x", b"%d" % label) for label in range(1000)]
    for root in ("s3://in1k", "s3://in1k/deep"):
        files.write_atomic(f"{root}/train.parquet", parquet_bytes(rows, [str(i) for i in range(1000)], 100))
        source = open_source(f"{root}#geo")
        assert contents_of(source) == [(str(i), b"%d" % i) for i in sorted(SUBSETS["geo"])]
        assert source.uri == f"{root}#geo" and open_source(source.uri) == source
        files.remove_tree(f"{root}/train.parquet")


def test_object_store_that_is_not_there(s3, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    with pytest.raises(UserError, match="does not exist"):
        open_source("s3://no-such-bucket/x")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unreachable, match="AWS_ENDPOINT_URL") as error:
        open_source(f"{s3}/x")
    assert "\n" not in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_http_tree(tmp_path):
    write_files(tmp_path, layout_files("imagefolder"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = open_source(f"http://127.0.0.1:{server.server_port}")
        assert contents_of(source) == EXPECTED
        unit = source.units()[0]
        with pytest.raises(UserError, match="#geo needs all 1,000 classes"):
            open_source(f"http://127.0.0.1:{server.server_port}#geo")
        server.shutdown()
    with pytest.raises(Unreachable):  # an outage must not look like twelve broken images
        unit.read()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_listing_order_does_not_matter(tmp_path, monkeypatch, layout):
    root = write_files(tmp_path, layout_files(layout))
    first = open_source(root)
    sizes = files.list_sizes(root)
    monkeypatch.setattr(splits.files, "list_sizes", lambda uri: dict(sorted(sizes.items(), reverse=True)))
    second = open_source(root)
    assert first == second
    assert first.index().equals(second.index())
    assert first.units(rows=5) == second.units(rows=5)


def test_fingerprint_follows_content_and_class_order(tmp_path):
    contents = layout_files("imagefolder")
    first = open_source(write_files(tmp_path / "1", contents)).fingerprint
    assert open_source(write_files(tmp_path / "2", contents | {"bee/0.png": b"x"})).fingerprint != first
    assert open_source(write_files(tmp_path / "3", contents | {"bee/9.png": b"x"})).fingerprint != first
    assert open_source(write_files(tmp_path / "4", contents | {"classes.txt": b"dog\ncat\nbee"})).fingerprint != first


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 3, 5, 100])
def test_units_cover_every_image_once(tmp_path, layout, rows):
    source = open_source(write_files(tmp_path, layout_files(layout)))
    units = source.units(rows=rows)
    keys = [key for unit in units for key in unit.rows["key"].to_pylist()]
    assert sorted(keys) == sorted(source.index()["key"].to_pylist())
    assert len({unit.name for unit in units}) == len(units)
    assert sum(unit.n for unit in units) == len(source) == 12
    if layout == "imagefolder":
        assert all(unit.label is not None and unit.n <= rows for unit in units)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chosen_keys(tmp_path, layout):
    source = open_source(write_files(tmp_path, layout_files(layout)))
    index = dict(zip(*(source.index()[c].to_pylist() for c in ("key", "label")), strict=True))
    chosen = sorted(index)[1::3][::-1]
    units = source.units(keys=set(chosen))
    assert sorted(key for unit in units for key in unit.read()["key"].to_pylist()) == sorted(chosen)
    assert [(r.key, r.label) for r in source.read(chosen)] == [(key, index[key]) for key in chosen]
    assert source.units(keys=[]) == []
    with pytest.raises(KeyError, match="nope"):
        source.units(keys=["nope"])


def test_pickled_units_carry_only_their_rows(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(500):
            (tmp_path / name / f"{i:04d}.png").write_bytes(b"x")
    unit = open_source(str(tmp_path)).units(rows=10)[0]
    assert len(pickle.dumps(unit)) < 4000


def test_counts_and_pickle(tmp_path):
    source = open_source(write_files(tmp_path, layout_files("webdataset")))
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert again.counts() == (4, 4, 4)
    assert np.asarray(again.index()["label"]).dtype == np.int32


def test_class_lists_of_two_sources_are_compared(tmp_path):
    contents = layout_files("imagefolder")
    source = open_source(write_files(tmp_path / "1", contents))
    check_same_classes(source, open_source(write_files(tmp_path / "2", contents)))
    other = open_source(write_files(tmp_path / "3", contents | {"classes.txt": b"bee\ndog\ncat"}))
    with pytest.raises(UserError, match=r"class 1 is 'cat' in .* but 'dog' in"):
        check_same_classes(source, other)
    fewer = open_source(write_files(tmp_path / "4", {k: v for k, v in contents.items() if "dog" not in k}))
    with pytest.raises(UserError, match=r"3 classes but .* has 2"):
        check_same_classes(source, fewer)
