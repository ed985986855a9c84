"""Parquet layouts: Hugging Face and plain columns; class names; damage; what the `datasets` library itself writes."""

from pathlib import Path

import pyarrow as pa
import pytest
from small_set import CLASSES, image_bytes, labeled_images, parquet_bytes, table_bytes, write_files

from raydd.data.source import check_same_classes, open_source
from raydd.data.tensors import load_images
from raydd.errors import UserError
from raydd.store import filesystem as files

IMAGES = [image_bytes(i) for i in range(6)]


def opened(tmp_path, **columns):
    return open_source(write_files(tmp_path, {"a.parquet": table_bytes(pa.table(columns))}))


def test_hugging_face_layout(tmp_path):
    rows = labeled_images()
    source = open_source(write_files(tmp_path, {"x/a.parquet": parquet_bytes(rows)}))
    assert source.classes == CLASSES
    assert source.index()["key"].to_pylist()[:2] == ["x/a.parquet:0", "x/a.parquet:1"]
    assert [r.data for r in source.read(["x/a.parquet:7", "x/a.parquet:0"])] == [rows[7][2], rows[0][2]]


def test_written_by_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "bee"])})
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": [0, 1, 1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path))
    assert source.classes == ("dog", "bee")
    assert source.units()[0].read()["bytes"].to_pylist() == IMAGES


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_columns(tmp_path, kind):
    source = opened(tmp_path, img=pa.array(IMAGES, kind), fine_label=[5, 3, 3, 5, 5, 3])
    assert source.classes == ("3", "5")
    assert source.index()["label"].to_pylist() == [1, 0, 0, 1, 1, 0]
    assert source.units()[0].read()["bytes"].to_pylist() == IMAGES


def test_string_and_dictionary_labels(tmp_path):
    names = ["dog", "bee", "bee", "dog", "bee", "dog"]
    assert opened(tmp_path / "1", image=IMAGES, label=names).classes == ("bee", "dog")
    assert opened(tmp_path / "2", image=IMAGES, label=pa.array(names).dictionary_encode()).classes == ("bee", "dog")


def test_a_class_list_beside_the_data(tmp_path):
    write_files(tmp_path, {"classes.txt": b"dog\nbee"})
    assert opened(tmp_path, image=IMAGES, label=[0, 1, 1, 0, 1, 0]).classes == ("dog", "bee")


def test_null_and_outside_labels_are_reported(tmp_path):
    contents = {"a.parquet": parquet_bytes([(0, "a", IMAGES[0]), (None, "b", IMAGES[1]), (9, "c", IMAGES[2])])}
    source = open_source(write_files(tmp_path, contents))
    assert source.index()["key"].to_pylist() == ["a.parquet:0"]
    assert dict(source.mislabeled) == {
        "a.parquet:1": "no label",
        "a.parquet:2": "label 9 is outside the 3 class names",
    }


def test_null_images_are_empty(tmp_path):
    source = opened(tmp_path, image=pa.array([None, *IMAGES[1:]]), label=[0, 1, 1, 0, 1, 0])
    assert source.units()[0].read()["bytes"].to_pylist() == [b"", *IMAGES[1:]]


def test_paths_in_the_data_are_not_followed(tmp_path):
    write_files(tmp_path, {"secret.png": IMAGES[0]})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}] * 2, kind)
    assert opened(tmp_path / "set", image=image, label=[0, 1]).units()[0].read()["bytes"].to_pylist() == [b"", b""]


def test_large_row_groups_are_cut_and_small_ones_joined(tmp_path):
    rows = [(i % 2, str(i), IMAGES[i % 6]) for i in range(60)]
    source = open_source(write_files(tmp_path, {"a.parquet": parquet_bytes(rows, row_group_size=50)}))
    assert [unit.n for unit in source.units(rows=20)] == [50, 10]
    assert [unit.n for unit in source.units(rows=10)] == [10] * 6
    source = open_source(write_files(tmp_path, {"a.parquet": parquet_bytes(rows, row_group_size=5)}))
    assert [unit.n for unit in source.units(rows=20)] == [20] * 3
    assert {unit.label for unit in source.units(rows=20)} == {None}


def test_files_sorted_by_class_give_units_of_one_class(tmp_path):
    rows = [(i // 40, str(i), IMAGES[0]) for i in range(120)]
    source = open_source(write_files(tmp_path, {"a.parquet": parquet_bytes(rows, row_group_size=100)}))
    assert [(unit.label, unit.n) for unit in source.units(rows=64)] == [(0, 40), (1, 40), (2, 40)]


def test_a_damaged_row_group_loses_its_images_only(tmp_path):
    rows = [(i % 3, str(i), IMAGES[i % 6]) for i in range(10)]
    path = tmp_path / "a.parquet"
    data = bytearray(parquet_bytes(rows, row_group_size=5))
    at = data.index(IMAGES[0][:8])
    write_files(tmp_path, {"a.parquet": bytes(data)})
    source = open_source(str(tmp_path))
    data[4 : at - 4] = b"\xff" * (at - 8)  # the header of the first page
    files.write_atomic(str(path), bytes(data))
    contents = [record.data for record in source.read(source.index()["key"].to_pylist())]
    assert contents[:5] == [b""] * 5
    assert contents[5:] == [row[2] for row in rows[5:]]


def test_a_file_that_went_away_gives_empty_images(tmp_path):
    source = opened(tmp_path, image=IMAGES, label=[0, 1, 1, 0, 1, 0])
    files.remove_tree(str(tmp_path / "a.parquet"))
    assert source.units()[0].read()["bytes"].to_pylist() == [b""] * 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["text"], "label": [0]}, "no column of encoded images"),
        ({"image": [b"x"]}, "no label column"),
        ({"image": [b"x"], "label": [0.5]}, "labels of type double"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "is empty"),
        ({"image": [b"x", b"y"], "label": [3, 3]}, "one class"),
        ({"image": [b"x", b"y"], "label": [-1, -1]}, "none of 2 images has a usable label"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, **columns)
    assert "\n" not in str(error.value)


def test_foreign_and_disagreeing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no readable Parquet file"):
        open_source(write_files(tmp_path / "1", {"a.parquet": b"PAR1 and then nothing"}))
    rows = labeled_images()
    contents = {"a.parquet": parquet_bytes(rows), "b.parquet": parquet_bytes(rows, names=CLASSES[::-1])}
    with pytest.raises(UserError, match="name different classes"):
        open_source(write_files(tmp_path / "2", contents))


def test_real_imagenette():
    root = Path(__file__).parents[2] / "../shared/data/imagenette-128"
    if not root.exists():
        pytest.skip("../shared/data is not here")
    train, val = open_source(str(root)), open_source(str(root), "val")
    check_same_classes(train, val)
    assert (len(train), len(val)) == (9469, 3925)
    assert train.classes[0] == "n01440764 tench"
    loaded = load_images(val, 32, keys=val.index()["key"].to_pylist()[::200])
    assert len(loaded) == 20 and not loaded.dropped
