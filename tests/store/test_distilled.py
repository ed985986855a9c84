"""A class is there when its marker is; the manifest's revision grows exactly when content changes; Hugging Face
`datasets` and plain pyarrow read the files without raydd."""

import io

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydd.errors import UserError
from raydd.store import distilled
from raydd.store import filesystem as files
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run

CLASSES = ["zero", "one"]


def encoded(value: int, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(sink, kind)
    return sink.getvalue()


def images(value: int, count: int = 2) -> list[DistilledImage]:
    return [
        DistilledImage(
            encoded(value + i), "mosaic", ("a", f"b{i}"), ((0, 0, 4, 4), (1, 2, 3, 4)), (0.5, 2.0), (1.0, -2.5)
        )
        for i in range(count)
    ]


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")


def test_what_is_committed_is_read_back(run):
    distilled.commit_class(run, 1, CLASSES, images(7), config_hash="c")
    assert distilled.read_class(run, 1) == images(7)
    marker = distilled.done(run, 1)
    assert marker["hash"] == distilled.content_digest(distilled.read_class(run, 1))
    assert (marker["images"], marker["label_bytes"]) == (2, 2 * 2 * 2)
    assert marker["image_bytes"] == sum(len(image.data) for image in images(7))


def test_a_class_without_its_marker_is_not_done(run):
    distilled.commit_class(run, 0, CLASSES, images(1), config_hash="c")
    assert distilled.is_done(run, 0, "c") and not distilled.is_done(run, 0, "d")
    files.remove_tree(files.join(distilled.class_dir(run, 0), "done.json"))
    assert distilled.done(run, 0) is None and not distilled.is_done(run, 0, "c")


def test_revision_grows_only_with_content(run):
    distilled.commit_class(run, 0, CLASSES, images(1))
    assert distilled.write_manifest(run, CLASSES, ipc=2)["revision"] == 1
    assert distilled.write_manifest(run, CLASSES, ipc=2, codec="png")["revision"] == 1
    distilled.commit_class(run, 1, CLASSES, images(2))
    assert distilled.write_manifest(run, CLASSES, ipc=2)["revision"] == 2
    distilled.commit_class(run, 1, CLASSES, images(2), seconds=9)
    assert distilled.write_manifest(run, CLASSES, ipc=2)["revision"] == 2
    distilled.commit_class(run, 1, CLASSES, images(3))
    manifest = distilled.write_manifest(run, CLASSES, ipc=2)
    assert manifest["revision"] == 3 and manifest == distilled.read_manifest(run)
    assert manifest["counts"] == {"zero": 2, "one": 2} and manifest["images"] == 4


def test_markers_are_read_together(run, monkeypatch):
    for label in (10, 2, 0):
        distilled.commit_class(
            run, label, [str(i) for i in range(11)], images(label), config_hash="c" if label else "d"
        )
    alone = {label: distilled.done(run, label) for label in (0, 2, 10)}
    with monkeypatch.context() as patch:
        # Over a network each of these is a request, and a set may have 21,841 classes.
        patch.setattr(distilled, "done", None)
        patch.setattr(distilled, "read_json", None)
        assert distilled.done_markers(run) == alone
    assert list(distilled.done_markers(run)) == [0, 2, 10]
    assert distilled.are_done(run, [2, 10], "c")
    assert not distilled.are_done(run, [0, 2], "c") and not distilled.are_done(run, [2, 3], "c")


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_marker_is_told(run, content):
    files.write_atomic(files.join(distilled.class_dir(run, 1), "done.json"), content)
    with pytest.raises(UserError, match=r"label=1/done\.json"):
        distilled.done_markers(run)


def test_a_class_file_does_not_grow_with_very_many_classes(run):
    for count in (distilled.MOST_NAMED, distilled.MOST_NAMED + 1):
        names = [f"class {i}" for i in range(count)]
        distilled.commit_class(run, 1, names, images(1))
        uri = files.join(distilled.class_dir(run, 1), "images.parquet")
        told = b"class 1234" in files.read_bytes(uri)
        assert told == (count == distilled.MOST_NAMED)
        assert pq.read_table(io.BytesIO(files.read_bytes(uri)))["class_name"].to_pylist() == ["class 1"] * 2
        assert distilled.features(names)["label"]["_type"] == ("ClassLabel" if told else "Value")
    assert files.size(uri) < 10_000


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ],
)
def test_names_tell_the_format_of_originals(kind, suffix):
    assert distilled.file_name(3, 7, encoded(9, kind)) == f"3-00007.{suffix}"


def test_manifest_of_no_set_is_a_user_error(run):
    with pytest.raises(UserError, match="raydd distill"):
        distilled.read_manifest(run)


def test_digest_sees_pixels_origin_and_labels():
    first = images(1)[0]
    changed = [
        DistilledImage(encoded(9), *list(vars(first).values())[1:]),
        DistilledImage(first.data, "real", first.source_keys, first.boxes, first.scores, first.soft_label),
        DistilledImage(first.data, "mosaic", first.source_keys, first.boxes, first.scores, (1.0, 2.5)),
    ]
    digests = {distilled.content_digest([image]) for image in [first, *changed]}
    assert len(digests) == 4
    assert distilled.content_digest([first]) == distilled.content_digest(images(1)[:1])


def test_read_by_pyarrow_and_hugging_face(tmp_path):
    run = Run(str(tmp_path / "run"))
    for label, kind in enumerate(("PNG", "JPEG")):
        distilled.commit_class(run, label, CLASSES, [DistilledImage(encoded(50 * label, kind), "real", ("k",))])
    rows = pq.read_table(f"{distilled.class_dir(run, 1)}/images.parquet", partitioning=None).to_pylist()
    assert rows[0]["label"] == 1 and rows[0]["class_name"] == "one" and rows[0]["soft_label"] is None
    assert [row["image"]["path"] for row in rows] == ["1-00000.jpg"]
    paths = [f"{distilled.class_dir(run, label)}/images.parquet" for label in range(2)]
    loaded = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == CLASSES
    assert loaded["label"][:] == [0, 1] and loaded[1]["source_keys"] == ["k"]
    assert np.asarray(loaded[0]["image"]).shape == (8, 8, 3)
