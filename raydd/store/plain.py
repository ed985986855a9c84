"""Reading files that others may have written: JSON, safetensors and Parquet that run no code and fail in one line.

Parquet is the one of the three that can carry code. Arrow's extension types name a class that is found in the process,
and Ray registers one whose values are pickles (`ray.data.arrow_pickled_object`): in a Ray worker, reading a column of
it executes what the file says. So a file that declares any extension type is refused before Arrow looks at its schema.

Limits. A file that claims to be huge is refused by what its own footer states: many more rows than bytes, or an image
column that inflates a hundredfold. What lies in the pages themselves is Arrow's to check.
"""

import base64
import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from raydd.errors import UserError
from raydd.store import filesystem

if TYPE_CHECKING:
    from torch import Tensor

TAIL_BYTES = 1 << 16  # what one request fetches of a file to read its footer, which is seldom longer
EXTENSION = b"ARROW:extension:name"
# Encoded images hardly shrink: a column that claims this many times its stored bytes is no column of images.
MOST_INFLATED, SMALL = 100, 256 << 20
ROWS_PER_BYTE = 16


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Raises `ValueError` for anything else, and for one that nests too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(uri: str) -> dict[str, Any]:
    """The JSON object in a file. Raises `FileNotFoundError`, or `UserError` for a damaged one."""
    return json_object(filesystem.read_bytes(uri), uri)


def json_object(data: bytes, uri: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises `UserError` for anything else; `uri` names the file."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise _damaged(uri, error) from error
    if not isinstance(value, dict):
        raise _damaged(uri, ValueError("it holds no JSON object"))
    return value


def load_tensors(data: bytes, uri: str) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, on the CPU. Raises `UserError` for a damaged one; `uri` names it."""
    # Torch is heavy, and workers that only read and decode do without.
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, error) from error


def safetensors_header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file, whole or cut behind its header. Raises `ValueError`."""
    # The format opens with the header's length (8 bytes, little endian), then the header, a JSON object.
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def open_parquet(source: BinaryIO | bytes, uri: str) -> pq.ParquetFile:
    """Open a Parquet file, a seekable stream or its bytes; `uri` names it to the user.

    Raises `UserError` for one that declares Arrow extension types or states impossible sizes, and
    `pyarrow.ArrowInvalid` for one that is damaged.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    size = stream.seek(0, io.SEEK_END)
    if _declares_extensions(_footer(stream, size)):
        raise UserError(
            f"{uri} declares Arrow extension types, which may run code when they are read: write it again with plain "
            "columns (numbers, strings, binary, lists, structs)"
        )
    stream.seek(0)
    try:
        file = pq.ParquetFile(stream)
    except (UnicodeError, KeyError, TypeError, AttributeError) as error:  # names that are none
        raise pa.ArrowInvalid(str(error)) from error
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) > ROWS_PER_BYTE * size:
        raise UserError(f"{uri} states {sum(rows):,} rows in {size:,} bytes: remove it or fetch it again")
    return file


def read_parquet(uri: str, schema: pa.Schema | None = None, columns: list[str] | None = None) -> pa.Table:
    """A small Parquet file whole, or some of its columns, with exactly `schema` if it is given.

    Raises `FileNotFoundError`, or `UserError` for a damaged or foreign file.
    """
    data = filesystem.read_bytes(uri)
    try:
        table = open_parquet(data, uri).read(columns=columns)
        return table if schema is None else table.select(schema.names).cast(schema)
    except UserError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(uri, error) from error


def check_inflation(file: pq.ParquetFile, group: int, column: str, uri: str) -> None:
    """Raise `UserError` if a column of encoded images would inflate beyond reason when its row group is read."""
    parts = [file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns)]
    parts = [part for part in parts if part.path_in_schema.split(".")[0] == column]
    stored, inflated = (
        sum(getattr(part, name) for part in parts) for name in ("total_compressed_size", "total_uncompressed_size")
    )
    if inflated > max(SMALL, MOST_INFLATED * stored):
        raise UserError(
            f"{uri} inflates {stored:,} bytes of {column!r} to {inflated:,}: encoded images do not; remove the file"
        )


def _footer(stream: BinaryIO, size: int) -> bytes:
    """The bytes of a Parquet footer; what there is where the file is cut or something else."""
    start = max(0, size - TAIL_BYTES)
    stream.seek(start)
    tail = stream.read(size - start)
    wanted = 8 + int.from_bytes(tail[-8:-4], "little")
    if len(tail) < wanted <= size:
        stream.seek(size - wanted)
        tail = stream.read(wanted)
    return tail[-wanted:]


def _declares_extensions(footer: bytes) -> bool:
    """Whether the Arrow schema in a footer, which is base64, holds the key that every extension type is named under."""
    return EXTENSION in footer or any(pattern in footer for pattern in _ENCODED)


def _encoded(text: bytes) -> list[bytes]:
    """What base64 of any longer text holds of `text`, for each of the three places it may start at."""
    patterns = []
    for before in range(3):
        code = base64.b64encode(bytes(before) + text)
        # The characters that also hold bits of what stands before and behind are left out.
        first, last = -(-before * 8 // 6), (before + len(text)) * 8 // 6
        patterns.append(code[first:last])
    return patterns


_ENCODED = _encoded(EXTENSION)


def _damaged(uri: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(f"{uri} is damaged or no file of raydd's ({reason}): restore it, or remove it to make it again")
