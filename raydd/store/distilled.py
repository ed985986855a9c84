"""The distilled set: Parquet per class that Hugging Face `datasets` and plain pyarrow read without raydd.

A class is committed at once: first `images.parquet`, then `done.json`, the marker that proves it. `dataset.json` is the
manifest, rewritten after commits: classes, counts, bytes, normalization, labels, and a revision that grows whenever the
content changes.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.plain import json_object, read_json, read_parquet
from raydd.store.run import Run

# How formats begin; anything else is taken for JPEG. All but PNG and JPEG are originals of doped sets.
MARKS = {
    "png": re.compile(rb"\x89PNG"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "gif": re.compile(rb"GIF8"),
    "bmp": re.compile(rb"BM"),
    "tif": re.compile(rb"II\*\0|MM\0\*"),
    "ppm": re.compile(rb"P[56]\s"),
}
# Every class file repeats the class names for Hugging Face, so that a set holds them once per class: of 21,841 classes
# they would take 16 GB. Sets of more classes than this go without, and their label is a plain number there.
MOST_NAMED = 2000
_DONE = re.compile(r"label=(\d{1,9})/done\.json")
ORIGINS = ("synthetic", "real", "mosaic")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("origin", pa.string()),
        ("source_keys", pa.list_(pa.string())),
        # One box (left, top, right, bottom; pixels of the decoded source image) and one score per source key.
        ("boxes", pa.list_(pa.list_(pa.int32()))),
        ("scores", pa.list_(pa.float32())),
        ("soft_label", pa.list_(pa.float16())),
    ]
)


@dataclasses.dataclass(frozen=True)
class DistilledImage:
    """One encoded image and where it came from; `soft_label` holds logits, one row of classes per tile."""

    data: bytes
    origin: str
    source_keys: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    scores: tuple[float, ...] = ()
    soft_label: tuple[float, ...] | None = None


def class_dir(run: Run, label: int) -> str:
    return run.path("distilled", f"label={label}")


def commit_class(run: Run, label: int, classes: Sequence[str], images: Sequence[DistilledImage], **facts: Any) -> None:
    """Write one class and then its done-marker; `facts` (method, config_hash, seed, seconds ...) go into the marker."""
    table = _table(label, classes, images)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", write_statistics=False)
    files.write_atomic(files.join(class_dir(run, label), "images.parquet"), sink.getvalue())
    done = {
        "hash": content_digest(images),
        "label": label,
        "class_name": classes[label],
        "images": len(images),
        "image_bytes": sum(len(image.data) for image in images),
        "label_bytes": sum(2 * len(image.soft_label or ()) for image in images),
        **facts,
    }
    files.write_atomic(files.join(class_dir(run, label), "done.json"), json.dumps(done, indent=1).encode())


def content_digest(images: Sequence[DistilledImage]) -> str:
    """SHA-256 over what the images are and where they came from: equal sets have equal digests on any machine."""
    digest = hashlib.sha256()
    for image in images:
        for part in (image.data, repr((image.origin, image.source_keys, image.boxes, image.soft_label)).encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def done(run: Run, label: int) -> dict[str, Any] | None:
    """The done-marker of a class, or None."""
    uri = files.join(class_dir(run, label), "done.json")
    return read_json(uri) if files.exists(uri) else None


def committed_labels(run: Run) -> set[int]:
    """The labels of all classes whose done-marker is there, from one listing."""
    return set(_marker_paths(run))


def done_markers(run: Run) -> dict[int, dict[str, Any]]:
    """The done-markers of all committed classes by label, ascending: one listing, and many markers at a time."""
    paths = _marker_paths(run)
    contents = files.read_many(run.path("distilled"), list(paths.values())) if paths else []
    markers = {}
    for (label, path), data in zip(paths.items(), contents, strict=True):
        # Empty: removed since it was listed, or damaged. Asked for alone, it says which.
        marker = json_object(data, run.path("distilled", path)) if data else done(run, label)
        if marker is not None:
            markers[label] = marker
    return markers


def _marker_paths(run: Run) -> dict[int, str]:
    found = {
        int(match[1]): path for path in files.list_files(run.path("distilled")) if (match := _DONE.fullmatch(path))
    }
    return dict(sorted(found.items()))


def is_done(run: Run, label: int, config_hash: str) -> bool:
    """Whether the class is committed by exactly this configuration."""
    marker = done(run, label)
    return marker is not None and marker.get("config_hash") == config_hash


def are_done(run: Run, labels: Iterable[int], config_hash: str) -> bool:
    """Whether all these classes are. One by one, over a network, a thousand would take minutes."""
    markers = done_markers(run)
    return all(markers.get(label, {}).get("config_hash") == config_hash for label in labels)


def write_manifest(run: Run, classes: Sequence[str], **facts: Any) -> dict[str, Any]:
    """Rewrite dataset.json from the done-markers; the revision grows only when the content changed."""
    markers = {label: marker for label, marker in done_markers(run).items() if label < len(classes)}
    uri = run.path("distilled", "dataset.json")
    old = read_json(uri) if files.exists(uri) else {"revision": 0, "hashes": {}}
    hashes = {classes[label]: marker["hash"] for label, marker in markers.items()}
    manifest = {
        "classes": list(classes),
        "counts": {classes[label]: marker["images"] for label, marker in markers.items()},
        "images": sum(marker["images"] for marker in markers.values()),
        "image_bytes": sum(marker["image_bytes"] for marker in markers.values()),
        "label_bytes": sum(marker["label_bytes"] for marker in markers.values()),
        "hashes": hashes,
        "revision": old["revision"] + (hashes != old["hashes"]),
        **facts,
    }
    if manifest != old:
        files.write_atomic(uri, json.dumps(manifest, indent=1).encode())
    return manifest


def read_manifest(run: Run) -> dict[str, Any]:
    """dataset.json; `UserError` if the run holds no distilled set yet, or a newer raydd made it."""
    uri = run.path("distilled", "dataset.json")
    if not files.exists(uri):
        raise UserError(f"{run.uri} holds no distilled set: run 'raydd distill METHOD --out {run.uri} ...' first")
    if run.exists():
        run.read()
    manifest = read_json(uri)
    classes = manifest.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{uri} names no classes: restore it, or run the same 'raydd distill' command again")
    return manifest


def check_complete(run: Run, manifest: dict[str, Any]) -> None:
    """Raise `UserError` if classes of the set are missing."""
    missing = [name for name in manifest["classes"] if name not in manifest["counts"]]
    if missing:
        raise UserError(
            f"{run.uri} lacks {len(missing)} of {len(manifest['classes'])} classes (first: {missing[0]!r}): "
            "run the same 'raydd distill' command again to finish it"
        )


def read_class(run: Run, label: int) -> list[DistilledImage]:
    """The images of one committed class, in the order they were written."""
    uri = files.join(class_dir(run, label), "images.parquet")
    rows = read_parquet(uri, SCHEMA).to_pylist()
    return [
        DistilledImage(
            data=row["image"]["bytes"],
            origin=row["origin"],
            source_keys=tuple(row["source_keys"]),
            boxes=tuple(tuple(box) for box in row["boxes"]),
            scores=tuple(row["scores"]),
            soft_label=None if row["soft_label"] is None else tuple(row["soft_label"]),
        )
        for row in rows
    ]


def file_name(label: int, index: int, data: bytes) -> str:
    """The name under which image `index` of a class is stored and exported; its suffix tells the format."""
    suffix = next((suffix for suffix, mark in MARKS.items() if mark.match(data)), "jpg")
    return f"{label}-{index:05d}.{suffix}"


def _table(label: int, classes: Sequence[str], images: Sequence[DistilledImage]) -> pa.Table:
    rows = [
        {
            "image": {"bytes": image.data, "path": file_name(label, i, image.data)},
            "label": label,
            "class_name": classes[label],
            "origin": image.origin,
            "source_keys": list(image.source_keys),
            "boxes": [list(box) for box in image.boxes],
            "scores": list(image.scores),
            "soft_label": None if image.soft_label is None else list(image.soft_label),
        }
        for i, image in enumerate(images)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features(classes)}})})


def features(classes: Sequence[str]) -> dict[str, Any]:
    """The Hugging Face `features` of the schema: `datasets` shows images and, up to `MOST_NAMED`, names of classes."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    def many(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "List"}

    return {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"} if len(classes) <= MOST_NAMED else value("int64"),
        "class_name": value("string"),
        "origin": value("string"),
        "source_keys": many(value("string")),
        "boxes": many(many(value("int32"))),
        "scores": many(value("float32")),
        "soft_label": many(value("float16")),
    }
