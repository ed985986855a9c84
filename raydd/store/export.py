"""The distilled set in other people's formats: ImageFolder tree, WebDataset tars, Hugging Face data set directory.

Every format keeps the encoded image bytes as they are (no second compression), the label as a position in the recorded
class list, and where each image came from; `metadata.jsonl` and the tars' `.json` carry soft labels (logits) too.

Decisions (ours). A hidden marker, written first and completed last, proves that a directory was made here: exporting
the same set again does nothing, another set replaces exactly the files that the marker lists, and a directory with
anything else in it is refused. Tars hold the images round robin over classes, so that a reader without a large shuffle
buffer still sees all classes.

Limits. `webdataset` holds the encoded set in memory once, the other formats one class. Programs that number
ImageFolder classes by sorted folder names (torchvision) get other labels than `classes.json` where names are not
sorted. Stored `views` labels are not exported.
"""

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydd.config import content_hash
from raydd.errors import UserError, choose
from raydd.store import distilled
from raydd.store import filesystem as files
from raydd.store.card import dataset_card
from raydd.store.distilled import DistilledImage
from raydd.store.plain import read_json
from raydd.store.run import Run
from raydd.store.scores import read_table

MARKER = ".raydd-export.json"
SHARD_BYTES = 256 << 20
# What some filesystem refuses in a name, and control characters.
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export left: where, in which format, how many images, files and bytes."""

    uri: str
    format: str
    images: int
    files: int
    bytes: int


def export(run: Run, fmt: str, out_uri: str) -> Exported:
    """Write the run's distilled set to `out_uri` (path or writable URI) as `fmt`, one of `FORMATS`.

    Raises `UserError` for an unknown format, an unfinished set, or a directory that holds other files.
    """
    write = FORMATS[choose("export format", fmt, FORMATS)]
    manifest = distilled.read_manifest(run)
    if not manifest["images"]:
        raise UserError(f"{run.uri} holds no images (method {manifest.get('method')}): nothing to export")
    distilled.check_complete(run, manifest)
    digest = content_hash([fmt, manifest])
    known = _prepare(out_uri, digest)
    if known is None:
        sink = _Sink(out_uri)
        sink.mark(fmt, digest, complete=False)
        write(run, manifest, sink)
        known = sink.mark(fmt, digest, complete=True)
    return Exported(out_uri, fmt, manifest["images"], len(known["files"]), known["bytes"])


class _Sink:
    """Writes files below one directory and remembers them."""

    def __init__(self, uri: str) -> None:
        self.uri, self.names, self.bytes = uri, [], 0

    def write(self, name: str, data: bytes) -> None:
        files.write_atomic(files.join(self.uri, name), data)
        self.names.append(name)
        self.bytes += len(data)

    def mark(self, fmt: str, digest: str, *, complete: bool) -> dict[str, Any]:
        record = {"format": fmt, "digest": digest, "complete": complete, "bytes": self.bytes, "files": self.names}
        files.write_atomic(files.join(self.uri, MARKER), json.dumps(record, indent=1).encode())
        return record


def _prepare(out: str, digest: str) -> dict[str, Any] | None:
    """The marker of an export of exactly this set, or None after making room for one; refuses foreign files."""
    if files.is_file(out):
        raise UserError(f"{out} is a file: give --out a directory")
    present = set(files.list_files(out))
    if not present:
        return None
    if MARKER not in present:
        raise UserError(f"{out} is not empty and was not made by 'raydd export': choose another --out")
    marker = read_json(files.join(out, MARKER))
    if marker["digest"] == digest:
        return marker if marker["complete"] and present >= set(marker["files"]) else None
    if not marker["complete"]:
        raise UserError(f"{out} holds an unfinished export of another set: remove it or choose another --out")
    foreign = sorted(present - set(marker["files"]) - {MARKER})
    if foreign:
        raise UserError(f"{out} holds files that 'raydd export' did not make ({foreign[0]}): choose another --out")
    # Only names that were just listed below `out`: a tampered marker cannot reach elsewhere.
    for name in sorted(present):
        files.remove_tree(files.join(out, name))
    return None


def _imagefolder(run: Run, manifest: dict[str, Any], sink: _Sink) -> None:
    folders = folder_names(manifest["classes"])
    lines = []
    for label, images in _classes(run, manifest):
        for i, image in enumerate(images):
            name = f"{folders[label]}/{distilled.file_name(label, i, image.data)}"
            sink.write(name, image.data)
            lines.append(json.dumps({"file_name": name, **_record(image, label, manifest["classes"])}))
    sink.write("classes.json", json.dumps(folders, indent=1).encode())
    sink.write("metadata.jsonl", ("\n".join(lines) + "\n").encode())


def _webdataset(run: Run, manifest: dict[str, Any], sink: _Sink) -> None:
    samples = [
        (i, label, image, distilled.file_name(label, i, image.data))
        for label, images in _classes(run, manifest)
        for i, image in enumerate(images)
    ]
    samples.sort(key=lambda sample: sample[:2])
    sink.write("classes.json", json.dumps(manifest["classes"], indent=1).encode())
    for shard, part in enumerate(_shards(samples, [len(image.data) for _, _, image, _ in samples])):
        sink.write(f"train-{shard:05d}.tar", _tar(part, manifest["classes"]))


def _tar(samples: Sequence[tuple[int, int, DistilledImage, str]], classes: Sequence[str]) -> bytes:
    """Samples of `<label>-<index>.{png|jpg, cls, json}`; equal samples give equal bytes (no times, no owners)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for _, label, image, name in samples:
            stem, suffix = name.rsplit(".", 1)
            record = json.dumps(_record(image, label, classes)).encode()
            for ending, data in ((suffix, image.data), ("cls", str(label).encode()), ("json", record)):
                info = tarfile.TarInfo(f"{stem}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _huggingface(run: Run, manifest: dict[str, Any], sink: _Sink) -> None:
    def flush() -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.concat_tables(held), buffer, compression="none", row_group_size=1000, write_statistics=False)
        sink.write(f"data/train-{shard:05d}.parquet", buffer.getvalue())

    held: list[pa.Table] = []
    shard = 0
    for label in range(len(manifest["classes"])):
        held.append(read_table(files.join(distilled.class_dir(run, label), "images.parquet")))
        if sum(table.nbytes for table in held) >= SHARD_BYTES:
            flush()
            held, shard = [], shard + 1
    if held:
        flush()
    sink.write("README.md", dataset_card(manifest).encode())


FORMATS = {"imagefolder": _imagefolder, "webdataset": _webdataset, "huggingface": _huggingface}


def folder_names(classes: Sequence[str]) -> list[str]:
    """Class names as distinct folder names that any filesystem takes; a name that is safe stays as it is."""
    names: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(classes):
        safe = _UNSAFE.sub("_", name).strip().strip(".")[:100].strip() or f"class-{label}"
        if safe.casefold() in taken:
            safe = f"{safe}-{label}"
        taken.add(safe.casefold())
        names.append(safe)
    return names


def _classes(run: Run, manifest: dict[str, Any]) -> Iterator[tuple[int, list[DistilledImage]]]:
    for label in range(len(manifest["classes"])):
        yield label, distilled.read_class(run, label)


def _record(image: DistilledImage, label: int, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "label": label,
        "class_name": classes[label],
        "origin": image.origin,
        "source_keys": image.source_keys,
        "boxes": image.boxes,
        "scores": _short(image.scores, np.float32),
        "soft_label": None if image.soft_label is None else _short(image.soft_label, np.float16),
    }


def _short(values: Sequence[float], dtype: type[np.floating]) -> list[float | None]:
    """The shortest decimals that read back to the same `dtype`; None for what JSON has no number for."""
    return [float(str(value)) if np.isfinite(value) else None for value in np.asarray(values, dtype)]


def _shards(samples: Sequence[Any], sizes: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = held = 0
    for i, size in enumerate(sizes):
        held += size
        if held >= SHARD_BYTES or i == len(sizes) - 1:
            yield samples[start : i + 1]
            start, held = i + 1, 0
