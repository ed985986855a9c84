"""Files that somebody made to run code, to write elsewhere, or to use up memory: planted by tests, never kept."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from commandline import refused
from PIL import Image
from priors import write_tiny_prior

# What Ray registers for columns of pickled Python objects; read in a process that has imported ray.data, it unpickles.
PICKLED = "ray.data.arrow_pickled_object"
# Options of a command that takes little.
LOCAL = ("--executor", "local")
SMALL = ("--ipc", 1, "--size", 8, *LOCAL)


class Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


def picture(value: int, size: int = 8) -> bytes:
    """A PNG of one gray."""
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tree(root: Path, per_class: int = 3) -> Path:
    """Class folders `ant` and `bee` of small pictures."""
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i}.png").write_bytes(picture(40 * i + 100 * label + 5))
    return root


def pickles(canary: Path) -> dict[str, bytes]:
    """Files that run code when they are unpickled, by what they look like."""
    new, old, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"weight": Touch(canary)}}, new)
    torch.save({"weight": Touch(canary)}, old, _use_new_zipfile_serialization=False)
    np.save(array, np.array([Touch(canary)], object), allow_pickle=True)
    plain = pickle.dumps(Touch(canary))
    return {"torch": new.getvalue(), "legacy": old.getvalue(), "pickle": plain, "npy": array.getvalue()}


def member(name: str, data: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def samples(names: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """An image and its label (ant, bee in turn) for each name."""
    members = []
    for i, (name, data) in enumerate(names.items()):
        members += [member(f"{name}.png", data), member(f"{name}.cls", b"bee" if i % 2 else b"ant")]
    return members


def with_size(data: bytes, size: int, at: int = 0) -> bytes:
    """A tar whose member with its header at offset `at` states another size, negative if you like."""
    header = bytearray(data[at : at + 512])
    if size < 0:
        header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    else:
        header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def parquet(columns: dict[str, pa.Array], extension: dict[str, str], metadata: bytes = b"") -> bytes:
    """A Parquet file in which some columns say they are of a registered extension type."""
    fields = []
    for name, array in columns.items():
        marks = {"ARROW:extension:name": extension.get(name, ""), "ARROW:extension:metadata": metadata}
        fields.append(pa.field(name, array.type, metadata=marks if name in extension else None))
    stream = io.BytesIO()
    pq.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), stream)
    return stream.getvalue()


def zip_bomb(name: str = "a.png", size: int = 64 << 20) -> bytes:
    """A zip of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    return stream.getvalue()


def gzip_bomb(size: int = 64 << 20) -> bytes:
    return gzip.compress(bytes(size))


def png_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that states `side` x `side` pixels, and holds as many as fit a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_text_bomb(size: int = 64 << 20) -> bytes:
    """A small picture with a compressed comment."""
    whole = picture(7)
    text = b"Comment\0\0" + zlib.compress(bytes(size))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


def deep_json(depth: int = 100_000) -> bytes:
    """Valid JSON that no recursive parser takes."""
    return b"[" * depth + b"]" * depth


def safetensors_files() -> dict[str, bytes]:
    """Safetensors whose header lies, by how."""
    deep = b'{"a":' + deep_json() + b"}"
    offsets = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    return {
        "huge header": struct.pack("<Q", 1 << 62) + b"{}",
        "header beyond the file": struct.pack("<Q", 1 << 20) + b"{}",
        "deep header": struct.pack("<Q", len(deep)) + deep,
        "no header": struct.pack("<Q", 3) + b"[1]" + bytes(8),
        "huge tensor": struct.pack("<Q", len(offsets)) + offsets + bytes(8),
        "empty": b"",
        "short": b"\1\2",
    }


def prior_of(tmp_path: Path) -> Path:
    """A tiny prior of the two classes."""
    return Path(write_tiny_prior(tmp_path / "prior", ("ant", "bee"), 8))


def sample(prior: Path, source: Path, tmp_path: Path) -> str:
    """The line that refuses to draw from a spoiled prior."""
    words = ("--data", source, "--out", tmp_path / "run", "--prior", prior, "--steps", 1)
    return refused("distill", "prior", *words, *SMALL)
