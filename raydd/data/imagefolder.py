"""ImageFolder trees: one folder per class, images in it at any depth; the key is the path below the root.

Classes are the sorted names of the top folders that hold images, as torchvision's `ImageFolder` numbers them, unless
`classes.txt` or `classes.json` gives the order. Other files, hidden folders and images outside a folder are ignored.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from raydd.data.decode import SUFFIXES
from raydd.data.listing import SCHEMA, Listing
from raydd.store import filesystem as files


def is_image(path: str) -> bool:
    """Whether `path` is an image inside some folder, by its name."""
    return "/" in path and path.lower().endswith(SUFFIXES)


def list_images(uri: str, sizes: Mapping[str, int], names: tuple[str, ...] | None) -> Listing:
    """Listing of the tree at `uri`, whose files `sizes` are known; folders outside `names` are reported."""
    found = sorted(path for path in sizes if is_image(path))
    keys = [key for key in found if _is_text(key)]
    unnamed = [(repr(key)[1:-1], "file name is not UTF-8") for key in found if not _is_text(key)]
    folders = [key.split("/", 1)[0] for key in keys]
    classes = tuple(sorted(set(folders))) if names is None else names
    position = {name: i for i, name in enumerate(classes)}
    labels = np.array([position.get(folder, -1) for folder in folders], np.int32)
    outside = [(keys[i], f"folder {folders[i]!r} is not in the class list") for i in np.flatnonzero(labels < 0)]
    chosen = [i for i in np.argsort(labels, kind="stable") if labels[i] >= 0]
    column = pa.array([keys[i] for i in chosen], pa.string())
    nbytes = pa.array([sizes[keys[i]] for i in chosen], pa.int64())
    label = pa.array(labels[chosen], pa.int32())
    start = pa.array(np.zeros(len(chosen), np.int64))
    return Listing(pa.table([column, label, column, start, nbytes, label], SCHEMA), classes, tuple(unnamed + outside))


def fetch(uri: str, rows: pa.Table) -> list[bytes]:
    """Bytes of each row's file, in order; b"" for one that is gone or unreadable."""
    return files.read_many(uri, rows["file"].to_pylist())


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
