"""Other programs read every format and see the same bytes, labels and origins; foreign files are never touched."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raydd.data.source import open_source
from raydd.errors import UserError
from raydd.models.torchvisions import torchvision_models
from raydd.store import distilled
from raydd.store import export as exporting
from raydd.store import filesystem as files
from raydd.store.distilled import DistilledImage
from raydd.store.export import FORMATS, MARKER, export, folder_names
from raydd.store.run import Run

# Not sorted, and one no filesystem takes as it is.
CLASSES = ["tench", "a/b: <dog>", "church"]
FOLDERS = ["tench", "a_b_ _dog_", "church"]


def digit(index: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray((load_digits().images[index] * 15).astype(np.uint8)).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


def expected(label: int, shift: int = 0) -> list[DistilledImage]:
    return [
        DistilledImage(
            digit(2 * label + i + shift), "real", (f"k{label}{i}",), ((0, 0, 8, 8),), (0.25,), (0.1, -2.0, 3.0)
        )
        for i in range(2)
    ]


def fill(run: Run, shift: int = 0) -> Run:
    run.begin("distill", {"ipc": 2}, seed=0)
    for label in range(3):
        distilled.commit_class(run, label, CLASSES, expected(label, shift))
    source = {"uri": "/home/me/private/digits", "fingerprint": "f00", "kind": "digits"}
    distilled.write_manifest(run, CLASSES, method="random", ipc=2, seed=0, size=8, source=source)
    return run


@pytest.fixture
def run(tmp_path) -> Run:
    return fill(Run(str(tmp_path / "run")))


def image_folder(path: str):
    torchvision_models()  # makes the import below possible beside a torch of another build
    from torchvision.datasets import ImageFolder

    return ImageFolder(path)


def test_imagefolder_as_torchvision_and_raydd_read_it(run, tmp_path):
    out = str(tmp_path / "out")
    exported = export(run, "imagefolder", out)
    assert exported.images == 6 and exported.files == 8
    assert exported.bytes == sum(size for name, size in files.list_sizes(out).items() if name != MARKER)
    folder = image_folder(out)
    assert sorted(FOLDERS) == folder.classes and len(folder) == 6
    source = open_source(out)
    assert list(source.classes) == FOLDERS
    for record in source.read(source.index()["key"].to_pylist()):
        label, index = map(int, record.key.rsplit("/", 1)[1].removesuffix(".png").split("-"))
        assert record.label == label and record.data == expected(label)[index].data


def test_imagefolder_metadata_keeps_origins_and_soft_labels(run, tmp_path):
    export(run, "imagefolder", str(tmp_path / "out"))
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    by_key = {row["source_keys"][0]: row for row in loaded}
    assert by_key["k11"]["label"] == 1 and by_key["k11"]["class_name"] == CLASSES[1]
    # float16 in the set: its shortest decimals are what was given.
    assert by_key["k11"]["soft_label"] == [0.1, -2.0, 3.0] and by_key["k11"]["boxes"] == [[0, 0, 8, 8]]


def test_webdataset_interleaves_classes_and_is_reproducible(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_BYTES", 3 * len(digit(0)) - 60)
    for name in ("a", "b"):
        export(run, "webdataset", str(tmp_path / name))
    shards = [name for name in files.list_files(str(tmp_path / "a")) if name.endswith(".tar")]
    assert len(shards) == 2
    labels = []
    for shard in shards:
        data = (tmp_path / "a" / shard).read_bytes()
        assert data == (tmp_path / "b" / shard).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.name.endswith(".cls"):
                    label = int(tar.extractfile(member).read())
                    index = int(member.name.split(".")[0].split("-")[1])
                    labels.append(label)
                    assert tar.extractfile(member.name[:-3] + "png").read() == expected(label)[index].data
                    record = json.load(tar.extractfile(member.name[:-3] + "json"))
                    assert record["source_keys"] == [f"k{label}{index}"]
    assert labels == [0, 1, 2, 0, 1, 2]


def test_webdataset_as_hugging_face_and_raydd_read_it(run, tmp_path):
    out = tmp_path / "out"
    export(run, "webdataset", str(out))
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(out / "*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["cls"][:] == [0, 1, 2, 0, 1, 2]
    source = open_source(str(out))
    assert list(source.classes) == CLASSES and sum(source.counts()) == 6


@pytest.mark.parametrize("shard_bytes", [1, 1 << 28])
def test_huggingface_directory_loads_by_name(run, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(exporting, "SHARD_BYTES", shard_bytes)
    out = tmp_path / "out"
    export(run, "huggingface", str(out))
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["label"].names == CLASSES
    assert loaded["label"][:] == [0, 0, 1, 1, 2, 2]
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    assert raw[3]["image"]["bytes"] == expected(1)[1].data
    assert "/home/me" not in (out / "README.md").read_text()


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_uri_and_nothing_twice(tmp_path, fmt, monkeypatch):
    run = fill(Run(f"memory://{tmp_path}/run"))
    out = f"memory://{tmp_path}/out"
    first = export(run, fmt, out)
    written = []
    monkeypatch.setattr(files, "write_atomic", lambda uri, data: written.append(uri))
    assert export(run, fmt, out) == first and written == []


def test_another_set_replaces_the_files_of_the_old_one(run, tmp_path):
    out = tmp_path / "out"
    export(run, "imagefolder", str(out))
    fill(run, shift=20)
    export(run, "webdataset", str(out))
    assert files.list_files(str(out)) == [MARKER, "classes.json", "train-00000.tar"]


def test_an_unfinished_export_is_finished(run, tmp_path):
    out = str(tmp_path / "out")
    export(run, "imagefolder", out)
    files.remove_tree(f"{out}/tench")
    assert export(run, "imagefolder", out).files == 8
    assert len(image_folder(out)) == 6


def test_foreign_files_are_refused_and_kept(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and was not made by"):
        export(run, "imagefolder", str(out))
    (out / "thesis.txt").unlink()
    export(run, "imagefolder", str(out))
    (out / "thesis.txt").write_text("years of work")
    fill(run, shift=20)
    with pytest.raises(UserError, match=r"did not make \(thesis\.txt\)"):
        export(run, "imagefolder", str(out))
    assert (out / "thesis.txt").read_text() == "years of work" and (out / "tench").is_dir()
    with pytest.raises(UserError, match="is a file"):
        export(run, "imagefolder", str(out / "thesis.txt"))


def test_a_tampered_marker_reaches_nothing_outside(run, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    outside.write_text("keep")
    export(run, "imagefolder", str(out))
    marker = json.loads((out / MARKER).read_text())
    (out / MARKER).write_text(json.dumps(marker | {"digest": "x", "files": [*marker["files"], "../outside.txt"]}))
    export(run, "imagefolder", str(out))
    assert outside.read_text() == "keep"


def test_what_cannot_be_exported_is_said(run, tmp_path):
    with pytest.raises(UserError, match="did you mean 'webdataset'"):
        export(run, "webdatset", str(tmp_path / "out"))
    distilled.write_manifest(run, [*CLASSES, "zebra"], method="random")
    with pytest.raises(UserError, match="'zebra'"):
        export(run, "imagefolder", str(tmp_path / "out"))
    full = Run(str(tmp_path / "full"))
    distilled.write_manifest(full, CLASSES, method="full")
    with pytest.raises(UserError, match="no images"):
        export(full, "imagefolder", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_folder_names_are_distinct_and_safe():
    names = folder_names(["cat", "Cat", "..", "../../etc", "", "a\nb", "x" * 300, ".hidden", "caf\u00e9"])
    assert names[0] == "cat" and names[1] == "Cat-1" and names[8] == "caf\u00e9"
    assert len({name.casefold() for name in names}) == 9
    assert not any("/" in name or "\n" in name or name.startswith(".") or len(name) > 110 for name in names)
