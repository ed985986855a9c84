"""Splits are found as folders and as file prefixes; asking for what is not there says what to do."""

import pytest
from small_set import image_bytes, labeled_images, layout_files, parquet_bytes, write_files

from raydd.data.source import open_source, open_validation
from raydd.errors import UserError


def nested(layout, *names):
    return {f"{n}/{path}": data for n in names for path, data in layout_files(layout, n).items()}


@pytest.mark.parametrize("layout", ["imagefolder", "parquet", "webdataset"])
@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_parent_and_leaf_give_the_same_source(tmp_path, layout, val):
    root = write_files(tmp_path, nested(layout, "train", val) | {"README.md": b"x"})
    for split, folder in (("train", "train"), ("val", val)):
        by_parent, by_leaf = open_source(root, split), open_source(f"{root}/{folder}", None)
        assert by_parent.split == split
        assert by_parent.index().equals(by_leaf.index())
        assert by_parent.fingerprint == by_leaf.fingerprint
        assert open_source(by_parent.uri, by_parent.split) == by_parent
    assert open_source(root).fingerprint != open_source(root, "val").fingerprint


def test_validation_is_preferred_to_test(tmp_path):
    root = write_files(tmp_path, nested("imagefolder", "train", "val", "test"))
    assert open_source(root, "val").fingerprint == open_source(f"{root}/val", "val").fingerprint
    assert open_source(root, "test").fingerprint == open_source(f"{root}/test", None).fingerprint


def test_prefixes_of_shards_are_splits(tmp_path):
    rows = labeled_images()
    contents = {
        "data/train-00000-of-00002.parquet": parquet_bytes(rows[:9]),
        "data/train-00001-of-00002.parquet": parquet_bytes(rows[9:]),
        "data/test-00000-of-00001.parquet": parquet_bytes(rows[:3] + rows[6:8]),
    }
    root = write_files(tmp_path, contents)
    assert len(open_source(root)) == 12
    assert len(open_source(root, "val")) == 5
    alone = open_source(f"{root}/data/test-00000-of-00001.parquet", "val")
    assert len(alone) == 5
    with pytest.raises(UserError, match="holds several splits"):
        open_source(root, None)


def test_a_class_called_train_is_a_class(tmp_path):
    contents = {f"{name}/{i}.png": image_bytes(name, i) for name in ("train", "car", "plane") for i in range(2)}
    assert open_source(write_files(tmp_path, contents)).classes == ("car", "plane", "train")


def test_class_list_beside_the_splits_counts_for_both_ways_in(tmp_path):
    root = write_files(tmp_path, nested("imagefolder", "train", "val") | {"classes.txt": b"dog\ncat\nbee"})
    assert open_source(root).classes == open_source(f"{root}/train").classes == ("dog", "cat", "bee")


def test_paths_named_as_validation_serve_as_they_are(tmp_path):
    root = write_files(tmp_path / "holdout", layout_files("imagefolder"))
    assert len(open_validation(root)) == 12
    root = write_files(tmp_path / "parent", nested("imagefolder", "train", "val"))
    assert open_validation(root) == open_source(root, "val")


def test_missing_split_says_what_is_there(tmp_path):
    root = write_files(tmp_path, nested("imagefolder", "train"))
    with pytest.raises(UserError, match=r"no val images \(found: train\): expected a folder val or validation"):
        open_source(root, "val")
    with pytest.raises(UserError, match="no val images"):
        open_source(f"{root}/train", "val")


@pytest.mark.parametrize(("name", "message"), [("nothing", "does not exist"), ("digit", "did you mean 'digits'")])
def test_what_does_not_exist(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / name))


def test_empty_directory_and_single_file(tmp_path):
    with pytest.raises(UserError, match="is empty or no directory"):
        open_source(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="is empty or no directory"):
        open_source(str(tmp_path / "a.txt"))
