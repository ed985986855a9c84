"""What a source knows about its images without decoding one: key, label, place and size, as one Arrow table.

Each layout (imagefolder, parquet, webdataset) makes a `Listing` and can fetch the bytes of rows of it; everything else
(splits, units, random access, fingerprints) is written once over the table.

Classes. A label is a position in a named, recorded class list, never a folder number. The list comes from the source
itself (Hugging Face names), else from `classes.json` (a list, or name -> position) or `classes.txt` (one name per
line) beside the data, else from the sorted distinct labels: strings as strings, integers by value. Images whose label
is absent or outside the list are left out and reported; only a source in which no image has a label is refused.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.plain import parse_json

# `block` numbers what is cheap to read together (a class folder, a row group, a tar); `start` is a row or an offset.
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("file", pa.string()),
        ("start", pa.int64()),
        ("nbytes", pa.int64()),
        ("block", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """Rows (`SCHEMA`, sorted by block, file and start), the class names, and (key, reason) of what was left out."""

    rows: pa.Table
    classes: tuple[str, ...]
    mislabeled: tuple[tuple[str, str], ...] = ()


def read_class_names(*directories: str) -> tuple[str, ...] | None:
    """Class names from the first `classes.json` or `classes.txt` found in the directories (URIs), or None.

    Raises `UserError` for a file that is no list of distinct names.
    """
    for directory in directories:
        for name, parse in (("classes.json", _parse_json), ("classes.txt", str.splitlines)):
            uri = files.join(directory, name)
            try:
                names = tuple(line.strip() for line in parse(files.read_bytes(uri).decode()) if line.strip())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (ValueError, AttributeError, TypeError) as error:
                raise UserError(f"{uri} is no list of class names ({error}): write one name per line") from error
            if len(set(names)) != len(names) or not names:
                raise UserError(f"{uri} must name each class once, in order: remove repeated or missing names")
            return names
    return None


def number_labels(
    values: Sequence[int | str | None], keys: Sequence[str], names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...], list[tuple[str, str]]]:
    """Turn labels as found into int32 positions in a class list; -1 where there is none.

    With `names`, integers are positions and strings are names. Without, the distinct values become the list. Returns
    positions [N], the class list, and (key, reason) for every -1.
    """
    if names is None:
        known = {value for value in values if isinstance(value, str) or (value is not None and value >= 0)}
        ordered = sorted(known, key=lambda value: (isinstance(value, str), value))
        position: dict[int | str, int] = {value: i for i, value in enumerate(ordered)}
        names = tuple(str(value) for value in ordered)
    else:
        position = {i: i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    labels = np.array([position.get(value, -1) for value in values], np.int32)
    bad = [
        (keys[i], "no label" if values[i] is None else f"label {values[i]!r} is outside the {len(names)} class names")
        for i in np.flatnonzero(labels < 0)
    ]
    return labels, names, bad


def check_listing(uri: str, listing: Listing) -> Listing:
    """Refuse, with `UserError`, a listing that no classifier could be trained on; return it otherwise."""
    if not listing.rows.num_rows:
        if listing.mislabeled:
            key, reason = listing.mislabeled[0]
            raise UserError(
                f"{uri}: none of {len(listing.mislabeled)} images has a usable label (first: {key}: {reason}): "
                "check its label column or its classes.txt"
            )
        raise UserError(f"{uri} is empty: expected labeled images; check the path")
    if len(listing.classes) < 2:
        raise UserError(
            f"{uri} has one class ({listing.classes[0]!r}): expected at least two; "
            "pass the directory that holds all class folders, or data with two or more labels"
        )
    return listing


def fingerprint(listing: Listing) -> str:
    """16 hex digits over classes, keys, labels and sizes: changes when an image or the class order does."""
    state = hashlib.sha256(json.dumps(listing.classes).encode())
    state.update("\0".join(listing.rows["key"].to_pylist()).encode())
    for column in ("label", "nbytes"):
        state.update(listing.rows[column].to_numpy().astype("<i8").tobytes())
    return state.hexdigest()[:16]


def _parse_json(text: str) -> list[str]:
    value = parse_json(text)
    if isinstance(value, dict):
        if set(value.values()) != set(range(len(value))):
            raise ValueError("positions must be 0, 1, 2 ...")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a JSON list of strings")
    return value
