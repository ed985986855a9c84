"""Scores (or latents) per source image as Parquet, one folder per label.

A scoring unit commits one file named after the unit, so that a unit scored twice is the same file twice. Units of one
class go straight to `scores/label=<i>/`; units of mixed classes wait in `state/scores/` and are regrouped once, in
bounded memory, when all units are done.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydd.config import content_hash
from raydd.store import filesystem as files
from raydd.store.plain import read_json, read_parquet
from raydd.store.run import Run

_PART = re.compile(r"(?:unit-(?P<unit>[^/]+)\.parquet|empty-(?P<empty>[^/]+)\.json)$")


def commit_unit(
    run: Run, unit: str, label: int | None, table: pa.Table | None, dropped: Sequence[tuple[str, str]] = ()
) -> None:
    """Write the score rows of one unit (columns key, label, ...); `label` is its class or None if mixed.

    `dropped` lists its broken images as (key, reason); it is written first, so that a committed unit has its list.
    `table` is None when every image of the unit is broken.
    """
    if dropped:
        list_dropped(run, f"unit-{unit}" if table is not None else f"empty-{unit}", dropped)
    if table is not None:
        folder = ("state", run.table) if label is None else (run.table, f"label={label}")
        write_table(run.path(*folder, f"unit-{unit}.parquet"), table)


def list_dropped(run: Run, name: str, dropped: Sequence[tuple[str, str]]) -> None:
    """Write (key, reason) of images that have no scores to `scores/dropped/<name>.json`."""
    record = json.dumps({"unit": name, "dropped": [list(pair) for pair in dropped]}, indent=1)
    files.write_atomic(run.path(run.table, "dropped", f"{name}.json"), record.encode())


def read_dropped(run: Run) -> list[tuple[str, str]]:
    """All dropped images as (key, reason), by key."""
    folder = run.path(run.table, "dropped")
    records = [read_json(files.join(folder, path)) for path in files.list_files(folder)]
    return sorted((key, reason) for record in records for key, reason in record["dropped"])


def committed_units(run: Run) -> set[str]:
    """Names of all units that are committed, regrouped or not."""
    paths = files.list_files(run.path(run.table)) + files.list_files(run.path("state", run.table))
    names = {match["unit"] or match["empty"] for path in paths if (match := _PART.search(path))}
    if files.exists(run.path(run.table, "regrouped.txt")):
        names |= set(files.read_bytes(run.path(run.table, "regrouped.txt")).decode().split())
    return names


def regroup(run: Run, max_bytes: int = 1 << 29) -> None:
    """Sort the mixed units into one folder per label, holding at most about `max_bytes` of rows at a time.

    File names depend on the waiting units only; after a crash the same call writes the same files again, or others
    whose repeated rows `read_label` drops.
    """
    waiting = files.list_files(run.path("state", run.table))
    if not waiting:
        return
    names = [_PART.search(path)["unit"] for path in waiting]
    # Named after all waiting units: if the removal below is cut short, the rest must not replace these files.
    batch = content_hash(names)
    held, held_bytes, part = defaultdict(list), 0, 0
    for path in waiting:
        table = read_table(run.path("state", run.table, path))
        held_bytes += table.nbytes
        for label in pc.unique(table["label"]).to_pylist():
            held[label].append(table.filter(pc.equal(table["label"], label)))
        if held_bytes >= max_bytes:
            _flush(run, held, batch, part)
            held, held_bytes, part = defaultdict(list), 0, part + 1
    _flush(run, held, batch, part)
    known = run.path(run.table, "regrouped.txt")
    before = files.read_bytes(known).decode().split() if files.exists(known) else []
    files.write_atomic(known, "\n".join(sorted({*before, *names})).encode())
    files.remove_tree(run.path("state", run.table))


def _flush(run: Run, held: dict[int, list[pa.Table]], batch: str, part: int) -> None:
    for label, tables in held.items():
        write_table(run.path(run.table, f"label={label}", f"part-{batch}-{part:04d}.parquet"), pa.concat_tables(tables))


def read_label(run: Run, label: int, columns: list[str] | None = None) -> pa.Table | None:
    """All rows of one class sorted by key, duplicates dropped; None if the class has none."""
    folder = run.path(run.table, f"label={label}")
    tables = [read_table(files.join(folder, path), columns) for path in files.list_files(folder)]
    if not tables:
        return None
    table = pa.concat_tables(tables).sort_by("key")
    keys = table["key"].to_pylist()
    first = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return table.take(first) if len(first) < len(keys) else table


def read_all(run: Run, labels: Iterable[int], columns: list[str] | None = None) -> pa.Table:
    """The rows of several classes, by class and key."""
    return pa.concat_tables([t for label in labels if (t := read_label(run, label, columns)) is not None])


def write_table(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    files.write_atomic(uri, sink.getvalue())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    # One file as it is; Arrow's read_table would infer a second, clashing `label` from the folder's name.
    return read_parquet(uri, columns=columns)
