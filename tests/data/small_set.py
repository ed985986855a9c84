"""One small labeled set (3 classes, 4 images each) written in every layout, at any URI."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydd.keyed import numpy_rng
from raydd.store import filesystem as files

CLASSES = ("bee", "cat", "dog")
PER_CLASS = 4


def image_bytes(*name, size=(40, 30), kind="PNG"):
    pixels = numpy_rng("test image", *name).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def labeled_images(split="train"):
    size = (40, 30) if split == "train" else (44, 30)  # noise of one size has one length, and sizes are fingerprinted
    return [
        (label, f"{i}", image_bytes(split, label, i, size=size))
        for label in range(len(CLASSES))
        for i in range(PER_CLASS)
    ]


def parquet_bytes(rows, names=CLASSES, row_group_size=5):
    """`rows` are (label, name, bytes); in the Hugging Face layout, with class names if given."""
    images = [{"bytes": data, "path": f"{name}.png"} for _, name, data in rows]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())], metadata
    )
    return table_bytes(pa.table([images, [label for label, _, _ in rows]], schema), row_group_size)


def table_bytes(table, row_group_size=5):
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=row_group_size)
    return stream.getvalue()


def tar_bytes(members):
    """`members` are (name, bytes) or ready TarInfo objects without content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def layout_files(layout, split="train"):
    """Path -> bytes of the small set in one layout; two shards where the layout has shards."""
    rows = labeled_images(split)
    if layout == "imagefolder":
        return {f"{CLASSES[label]}/{name}.png": data for label, name, data in rows}
    mixed = rows[::2] + rows[1::2]
    if layout == "parquet":
        return {f"{k}.parquet": parquet_bytes(mixed[6 * k : 6 * k + 6]) for k in range(2)}
    shards = {}
    for k in range(2):
        members = []
        for label, name, data in mixed[6 * k : 6 * k + 6]:
            members += [(f"{CLASSES[label]}-{name}.png", data), (f"{CLASSES[label]}-{name}.cls", b"%d" % label)]
        shards[f"{k}.tar"] = tar_bytes(members)
    return shards | {"classes.txt": "\n".join(CLASSES).encode()}


def write_files(root, contents):
    for path, data in contents.items():
        files.write_atomic(files.join(str(root), path), data)
    return str(root)
