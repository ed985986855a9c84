"""What happens to one shard of the source on its way to the score table, the same under every executor.

    read_unit    key, label, bytes                    (CPU)
    decode_unit  uint8 pixels at the working size     (CPU); broken images become an `error`, never an exception
    UnitScorer   every score in one pass, then commit (accelerator); gives back one small row of statistics

A shard is one Arrow table from beginning to end: it is the unit of work, of retry, of commit, and of numerics.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydd.data.decode import decode_table
from raydd.data.source import SourceUnit
from raydd.store import scores
from raydd.store.run import Run

ScoreFunction = Callable[..., pa.Table]


@dataclasses.dataclass(frozen=True)
class ScoreStream:
    """Which tables are made of each decoded shard: where each goes, and how a worker gets its scorer.

    A loader is small to pickle and heavy to call: `load(device)` opens the weights.
    """

    size: int
    tables: tuple[tuple[Run, Callable[[str], ScoreFunction]], ...]

    def open(self, device: str) -> "UnitScorer":
        return UnitScorer(self.size, [(run, load(device)) for run, load in self.tables])


def read_unit(unit: SourceUnit) -> pa.Table:
    """A shard's rows with the shard's name, size and class beside them."""
    table = unit.read()
    count = table.num_rows
    for name, value, kind in (("unit", unit.name, pa.string()), ("unit_label", unit.label, pa.int32())):
        table = table.append_column(name, pa.array([value] * count, kind))
    return table.append_column("unit_rows", pa.array([count] * count, pa.int32()))


def decode_rows(table: pa.Table, size: int) -> pa.Table:
    """Replace `bytes` by `pixels` (uint8 size*size*3, row-major RGB; empty if broken) and `error` (null if fine)."""
    images, kept, dropped = decode_table(table, size)
    reasons = dict(dropped)
    pixels: list[bytes] = [b""] * table.num_rows
    for image, row in zip(images, kept):
        pixels[int(row)] = image.tobytes()
    errors = [reasons.get(key) for key in table["key"].to_pylist()]
    table = table.drop_columns(["bytes"]).append_column("pixels", pa.array(pixels, pa.large_binary()))
    return table.append_column("error", pa.array(errors, pa.string()))


def decode_unit(unit: SourceUnit, size: int) -> pa.Table:
    """Read and decode a shard in this process."""
    return decode_rows(read_unit(unit), size)


class UnitScorer:
    """Scores a decoded shard, commits its rows, and returns one row: unit, images, dropped, seconds.

    Two threads may call it: one scores while the other commits, so that the accelerator does not wait for the storage.
    """

    def __init__(self, size: int, tables: Sequence[tuple[Run, ScoreFunction]]) -> None:
        self.size, self.tables, self.scoring = size, tables, threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        unit, label, rows = (table[name][0].as_py() for name in ("unit", "unit_label", "unit_rows"))
        # Scores are committed per shard; a split or merged block would commit a part as if it were the whole.
        if table.num_rows != rows or pc.count_distinct(table["unit"]).as_py() != 1:
            raise RuntimeError(f"shard {unit} arrived in pieces: {table.num_rows} of {rows} rows")
        fine = table.filter(pc.is_null(table["error"]))
        broken = table.filter(pc.is_valid(table["error"]))
        dropped = list(zip(broken["key"].to_pylist(), broken["error"].to_pylist()))
        with self.scoring:
            start = time.monotonic()
            made = [self._score(score, fine) for _, score in self.tables]
        for (run, _), scored in zip(self.tables, made):
            scores.commit_unit(run, unit, label, scored, dropped)
        return pa.table(
            {
                "unit": [unit],
                "images": [fine.num_rows],
                "dropped": [len(dropped)],
                "seconds": [time.monotonic() - start],
            }
        )

    def _score(self, score: ScoreFunction, fine: pa.Table) -> pa.Table | None:
        if not fine.num_rows:
            return None
        # A bytearray, because torch warns about memory that it may not write to.
        pixels = np.frombuffer(bytearray().join(fine["pixels"].to_pylist()), np.uint8)
        images = pixels.reshape(fine.num_rows, self.size, self.size, 3)
        return score(images, fine["label"].to_pylist(), fine["key"].to_pylist())
