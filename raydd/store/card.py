"""The data set card (README.md) of a Hugging Face export: YAML front matter, then what a user of the set must know.

Limit: no license is stated. Distilled images are derived from the source, whose license decides.
"""

import json
import re
from typing import Any

# Upper bounds of the Hub's size categories.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def dataset_card(manifest: dict[str, Any]) -> str:
    """README.md for a distilled set, from its dataset.json."""
    return f"{_front_matter(manifest)}\n{_body(manifest)}"


def _front_matter(manifest: dict[str, Any]) -> str:
    size = next((name for bound, name in SIZES if manifest["images"] < bound), "10M<n<100M")
    # JSON strings are YAML strings: names from outside need no further quoting.
    return "\n".join(
        [
            "---",
            f"pretty_name: {json.dumps(_title(manifest))}",
            "task_categories: [image-classification]",
            f"tags: [dataset-distillation, raydd, {json.dumps(str(manifest.get('method', 'unknown')))}]",
            f"size_categories: [{json.dumps(size)}]",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: data/train-*.parquet",
            "---",
            "",
        ]
    )


def _title(manifest: dict[str, Any]) -> str:
    return f"{_source_name(manifest)} distilled to {manifest.get('ipc', '?')} images per class"


def _source_name(manifest: dict[str, Any]) -> str:
    """Last part of the source's URI: a card is published, a path of the machine it was made on is not."""
    uri = str(manifest.get("source", {}).get("uri", "a data set"))
    return uri.rstrip("/").rsplit("/", 1)[-1] or uri


def _body(manifest: dict[str, Any]) -> str:
    labels, normalization = manifest.get("labels", {}), manifest.get("normalization", {})
    facts = [
        ("method", f"{manifest.get('method')} (raydd)"),
        ("images", f"{manifest['images']:,} ({manifest['image_bytes']:,} bytes)"),
        ("classes", f"{len(manifest['classes'])}"),
        ("images per class", manifest.get("ipc")),
        ("image size", manifest.get("size")),
        ("tiles per side", manifest.get("factor")),
        ("codec", manifest.get("codec")),
        ("normalization mean", normalization.get("mean")),
        ("normalization std", normalization.get("std")),
        ("labels", labels.get("form")),
        ("teacher", _teacher(labels)),
        ("seed", manifest.get("seed")),
        ("source fingerprint", manifest.get("source", {}).get("fingerprint")),
    ]
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts if value is not None)
    return BODY.format(title=_cell(_title(manifest)), rows=rows)


def _teacher(labels: dict[str, Any]) -> str | None:
    if not labels.get("teacher_hash"):
        return None
    name = str(labels.get("teacher")).rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, hash {labels['teacher_hash']}{', early epoch' if labels.get('early') else ''}"


def _cell(value: Any) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(str(value).split()))


BODY = """
# {title}

A distilled data set: few images on which a classifier is trained from scratch. Made by raydd.

| | |
|---|---|
{rows}

```python
from datasets import load_dataset

images = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
```

Columns: `image`; `label`, a position in the class list; `class_name`; `origin`: real, mosaic or synthetic;
`source_keys`, `boxes` (left, top, right, bottom in pixels of the source image) and `scores`: one per real image or
tile that went in; `soft_label`: teacher logits, one row of classes per tile, where labels are stored.

Labels `online` are made by the teacher on every augmented view while the student trains: the teacher is part of what
such a student needs. Results depend on the training protocol as much as on the images: compare with random real images
under the same protocol, labels and number of steps.
"""
