"""The packaged source `digits`: scikit-learn's 1,797 real handwritten digits, for demos and tests without network.

The 8x8 values 0..16 are scaled to 0..255 and enlarged to 32x32 RGB, bicubic (ours): nearest-neighbor enlargement would
keep the numbers but make every picture a staircase of 4-px blocks, which no convolution meets in photographs and which
crops and flips by other than 4 px would break. Per class, the fifth with the smallest keyed hash is `val`, the rest
`train`. The first use writes both as Parquet in the Hugging Face layout under `$RAYDD_CACHE` or `~/.cache/raydd`; the
file names differ, so that no key is in both splits.

On a cluster, units carry the name `digits/train`; `locate` makes the files on whatever node reads them.
"""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydd.errors import UserError
from raydd.keyed import hash64
from raydd.store import filesystem as files

NAME = "digits"
SIZE = 32
CLASSES = tuple("0123456789")
VAL_SHARE = 0.2


def locate(uri: str) -> str:
    """`uri` itself, or the directory that stands for `digits` or `digits/SPLIT`, written first if need be."""
    if uri != NAME and not uri.startswith(f"{NAME}/"):
        return uri
    return files.join(materialize(), *uri.split("/")[1:])


def materialize() -> str:
    """Write the digits unless they are there; return their directory. Raises `UserError` if the cache is read-only."""
    cache = os.environ.get("RAYDD_CACHE") or "~/.cache/raydd"
    root = files.join(files.absolute(cache), f"digits-{SIZE}")
    targets = {split: files.join(root, split, f"{split}.parquet") for split in ("train", "val")}
    if all(files.exists(target) for target in targets.values()):
        return root
    try:
        for split, table in _tables().items():
            files.write_atomic(targets[split], _parquet_bytes(table))
    except OSError as error:
        raise UserError(f"cannot write {root} ({error}): set RAYDD_CACHE to a directory you can write") from error
    return root


def split_of(labels: np.ndarray) -> np.ndarray:
    """Whether each digit [N] belongs to `val` (bool [N]): the smallest keyed hashes, a fifth of every class."""
    val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label), key=lambda i: hash64(NAME, int(i)))
        val[members[: round(VAL_SHARE * len(members))]] = True
    return val


def _tables() -> dict[str, pa.Table]:
    from sklearn.datasets import load_digits  # a second of import that only the first use pays

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    val = split_of(data.target)
    return {
        "train": _table(pixels, data.target, np.flatnonzero(~val)),
        "val": _table(pixels, data.target, np.flatnonzero(val)),
    }


def _table(pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> pa.Table:
    images = [{"bytes": _png(pixels[i]), "path": f"digit-{i:04d}.png"} for i in chosen]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table([pa.array(images, schema.field("image").type), pa.array(labels[chosen], pa.int64())], schema)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _parquet_bytes(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=256, compression="none")
    return stream.getvalue()
