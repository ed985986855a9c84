"""Small labeled sources with broken images, in every layout that Ray reads differently, and teachers for them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydd.keyed import numpy_rng
from raydd.models.checkpoint import ModelInfo, save_checkpoint
from raydd.models.registry import build_model

SIZE = 16


def png(*name: object) -> bytes:
    """A picture of noise that no other name has."""
    stream = io.BytesIO()
    Image.fromarray(numpy_rng("picture", *name).integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pictures(classes: int, per_class: int) -> list[tuple[int, str, bytes]]:
    """(label, name, bytes); every seventh is broken, in one of three ways."""
    rows = []
    for label in range(classes):
        for i in range(per_class):
            data = png(label, i)
            if (label + i) % 7 == 6:
                data = (b"", b"not an image", data[: len(data) // 2])[i % 3]
            rows.append((label, f"{i:03d}.png", data))
    return rows


def write_imagefolder(root: Path, classes: int = 4, per_class: int = 20) -> str:
    """Class folders; a unit is a class."""
    for label, name, data in pictures(classes, per_class):
        path = root / f"class{label:02d}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def write_parquet(root: Path, classes: int = 4, per_class: int = 20) -> str:
    """Two files of mixed classes in the Hugging Face layout; a unit is a row group."""
    root.mkdir(parents=True, exist_ok=True)
    rows = pictures(classes, per_class)
    names = [f"class{label:02d}" for label in range(classes)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    for part in range(2):
        mine = rows[part::2]
        images = [{"bytes": data, "path": name} for _, name, data in mine]
        table = pa.table([images, [label for label, _, _ in mine]], schema)
        pq.write_table(table, root / f"part{part}.parquet", row_group_size=16)
    return str(root)


LAYOUTS = {"imagefolder": write_imagefolder, "parquet": write_parquet}


def write_teacher(root: Path, classes: int = 4, width: int = 8) -> str:
    """A ConvNet-3 with random weights."""
    names = tuple(f"class{label:02d}" for label in range(classes))
    model = build_model("convnet3", num_classes=classes, image_size=SIZE, width=width, seed=0)
    info = ModelInfo(arch="convnet3", image_size=SIZE, outputs=classes, classes=names, width=width)
    save_checkpoint(str(root), "teacher", model, info)
    return str(root)
