"""An ImageFolder's classes are its folders in order; what is no image is ignored, what has no class is reported."""

import os

import pytest
from small_set import CLASSES, image_bytes, layout_files, write_files

from raydd.data.source import open_source
from raydd.errors import UserError


def test_sorted_folders_are_the_classes(tmp_path):
    source = open_source(write_files(tmp_path, layout_files("imagefolder")))
    assert source.classes == CLASSES
    assert source.index()["key"].to_pylist()[:2] == ["bee/0.png", "bee/1.png"]
    assert source.counts() == (4, 4, 4)


def test_a_class_list_overrides_the_order(tmp_path):
    root = write_files(tmp_path, layout_files("imagefolder") | {"classes.txt": b"dog\ncat\nbee\n"})
    source = open_source(root)
    assert source.classes == ("dog", "cat", "bee")
    assert next(source.read(["bee/1.png"])).label == 2


def test_a_folder_outside_the_list_is_reported(tmp_path):
    source = open_source(write_files(tmp_path, layout_files("imagefolder") | {"classes.txt": b"bee\ncat\n"}))
    assert source.counts() == (4, 4)
    assert dict(source.mislabeled) == {f"dog/{i}.png": "folder 'dog' is not in the class list" for i in range(4)}


def test_other_and_hidden_files_are_ignored_and_depth_does_not_matter(tmp_path):
    extra = {"readme.md": b"x", "bee/notes.txt": b"x", ".cache/a.png": b"x", "cat/._a.png": b"x", "loose.png": b"x"}
    deep = {"cat/images/deep.JPEG": image_bytes(9, kind="JPEG")}
    source = open_source(write_files(tmp_path, layout_files("imagefolder") | extra | deep))
    assert source.counts() == (4, 5, 4)
    assert "cat/images/deep.JPEG" in source.index()["key"].to_pylist()


def test_linked_class_folders_are_followed_and_cycles_cut(tmp_path):
    write_files(tmp_path / "full", layout_files("imagefolder"))
    subset = tmp_path / "subset"
    subset.mkdir()
    for name in ("bee", "dog"):
        (subset / name).symlink_to(tmp_path / "full" / name)
    (tmp_path / "full" / "dog" / "loop").symlink_to(tmp_path / "full" / "dog")
    assert open_source(str(subset)).counts() == (4, 4)


def test_names_that_are_no_text_are_reported(tmp_path):
    root = write_files(tmp_path, layout_files("imagefolder"))
    try:
        with open(os.path.join(os.fsencode(root), b"bee", b"caf\xe9.png"), "wb") as file:
            file.write(image_bytes(5))
    except OSError:
        pytest.skip("this filesystem refuses such names")
    assert [reason for _, reason in open_source(root).mislabeled] == ["file name is not UTF-8"]


def test_unreadable_files_are_empty_not_errors(tmp_path):
    root = write_files(tmp_path, layout_files("imagefolder"))
    source = open_source(root)
    os.remove(tmp_path / "bee" / "1.png")
    data = {record.key: record.data for record in source.read(["bee/0.png", "bee/1.png"])}
    assert data["bee/0.png"] and data["bee/1.png"] == b""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.png": b"x"}, "no class folders"),
        ({"a/1.png": b"x"}, "one class"),
        ({"a.csv": b"x"}, "is no source"),
        ({"a/1.png": b"x", "classes.txt": b"b\nc"}, "none of 1 images has a usable label"),
    ],
)
def test_what_is_no_image_set_is_refused(tmp_path, contents, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(write_files(tmp_path, contents))
    assert "\n" not in str(error.value)
