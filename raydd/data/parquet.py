"""Parquet files of encoded images: the Hugging Face layout, or a plain bytes column beside a label column.

The key is `file.parquet:row`. The listing reads footers and the label column only. Images are read by whole row groups,
of which the needed rows are kept. The image column is a struct with a `bytes` field, or binary; class names come from
the schema's Hugging Face metadata (JSON; nothing is ever unpickled).

Limits. `bytes` that are null because the image lies in a file named by `path` are not followed: a data set must not
choose which files of this machine are read. The size of one image is its share of its row group.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydd.data.listing import SCHEMA, Listing, number_labels
from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.plain import check_inflation, open_parquet, parse_json
from raydd.store.reach import translate

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
SUFFIX = ".parquet"
LISTING_THREADS = 8


@dataclass(frozen=True)
class _Shard:
    """One file as listed: its label values, and rows and image bytes of each of its row groups."""

    labels: list[int | str | None]
    group_rows: list[int]
    group_bytes: list[int]
    names: tuple[str, ...] | None


def list_images(uri: str, sizes: Mapping[str, int], names: tuple[str, ...] | None) -> Listing:
    """Listing of the Parquet files among `sizes` below `uri`; `names` serves when the files name no classes.

    Raises `UserError` for an unreadable file, absent columns, or files that disagree on the class names.
    """
    paths = sorted(path for path in sizes if path.endswith(SUFFIX))
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        shards = list(pool.map(lambda path: _list_shard(files.join(uri, path)), paths))
    names = _common_names(uri, paths, shards) or names
    keys = [f"{path}:{row}" for path, shard in zip(paths, shards) for row in range(len(shard.labels))]
    values = [value for shard in shards for value in shard.labels]
    labels, classes, bad = number_labels(values, keys, names)
    rows = [shard.group_rows for shard in shards]
    counts = [len(shard.labels) for shard in shards]
    group_rows = np.concatenate([np.array(r, np.int64) for r in rows] or [np.zeros(0, np.int64)])
    group_bytes = np.concatenate([np.array(s.group_bytes, np.int64) for s in shards] or [np.zeros(0, np.int64)])
    table = pa.table(
        [
            pa.array(keys, pa.string()),
            pa.array(labels),
            pa.array(np.repeat(np.array(paths, object), counts), pa.string()),
            pa.array(np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)])),
            pa.array(np.repeat(group_bytes // np.maximum(group_rows, 1), group_rows)),
            pa.array(np.repeat(np.arange(len(group_rows), dtype=np.int32), group_rows)),
        ],
        SCHEMA,
    )
    return Listing(table.filter(pc.greater_equal(table["label"], 0)), classes, tuple(bad))


def fetch(uri: str, rows: pa.Table) -> list[bytes]:
    """Bytes of each row, in order; b"" for null images, damaged row groups and files that are gone or damaged."""
    contents = [b""] * rows.num_rows
    paths = np.array(rows["file"].to_pylist(), object)
    starts = rows["start"].to_numpy()
    for path in dict.fromkeys(paths):
        at = np.flatnonzero(paths == path)
        with contextlib.suppress(FileNotFoundError), _past_damage():
            for position, content in _fetch_file(files.join(uri, path), starts[at]):
                contents[at[position]] = content
    return contents


def _list_shard(uri: str) -> _Shard:
    with files.open_input(uri) as stream, translate(uri):
        try:
            file = open_parquet(stream, uri)
            column = _label_column(uri, file.schema_arrow)
            image = _image_column(uri, file.schema_arrow)
            labels = _label_values(uri, file.read(columns=[column])[column])
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            group_bytes = [_image_bytes(group, image) for group in groups]
            if sum(group.num_rows for group in groups) != len(labels):
                raise pa.ArrowInvalid("its row groups hold another number of labels than they state")
        except (pa.ArrowException, UnicodeError, OSError) as error:
            if not _is_damage(error):
                raise
            raise UserError(f"{uri} is no readable Parquet file: remove it or fetch it again") from error
    return _Shard(labels, [g.num_rows for g in groups], group_bytes, _huggingface_names(file.schema_arrow, column))


def _fetch_file(uri: str, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Positions in `wanted` (row numbers) and images; every row group that is needed is read once."""
    with files.open_input(uri) as stream, translate(uri):
        file = open_parquet(stream, uri)
        column = _image_column(uri, file.schema_arrow)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        group_of = np.searchsorted(ends, wanted, side="right")
        for group in np.unique(group_of).tolist():
            with _past_damage():
                check_inflation(file, group, column, uri)
                images = file.read_row_group(group, columns=[column])[column]
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                at = np.flatnonzero(group_of == group)
                first = ends[group] - file.metadata.row_group(group).num_rows
                for position, image in zip(at, images.take(wanted[at] - first), strict=True):
                    yield position, image.as_py() or b""


@contextlib.contextmanager
def _past_damage() -> Iterator[None]:
    """Leave the block when Arrow finds bad bytes; other errors pass."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, OSError) as error:
        if not _is_damage(error):
            raise


def _is_damage(error: Exception) -> bool:
    """Whether Arrow found bad bytes, as against a disk or network that failed (those carry an errno or a subclass)."""
    return isinstance(error, (pa.ArrowException, UnicodeError)) or (type(error) is OSError and error.errno is None)


def _image_column(uri: str, schema: pa.Schema) -> str:
    for name in IMAGE_COLUMNS:
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name
    raise UserError(
        f"{uri} has no column of encoded images (columns: {', '.join(schema.names)}): "
        f"expected one of {', '.join(IMAGE_COLUMNS)}, binary or struct<bytes, path>"
    )


def _label_column(uri: str, schema: pa.Schema) -> str:
    for name in LABEL_COLUMNS:
        if name in schema.names:
            return name
    raise UserError(
        f"{uri} has no label column (columns: {', '.join(schema.names)}): expected one of {', '.join(LABEL_COLUMNS)}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_values(uri: str, column: pa.ChunkedArray) -> list[int | str | None]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_pylist()
    raise UserError(f"{uri} has labels of type {kind}: expected integers or strings")


def _image_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    parts = (group.column(i) for i in range(group.num_columns))
    return sum(part.total_compressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _huggingface_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if valid and names and len(set(names)) == len(names) else None


def _common_names(uri: str, paths: list[str], shards: list[_Shard]) -> tuple[str, ...] | None:
    for path, shard in zip(paths, shards):
        if shard.names != shards[0].names:
            raise UserError(f"{uri}: {path} and {paths[0]} name different classes: keep files of one data set only")
    return shards[0].names if shards else None
