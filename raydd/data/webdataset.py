"""WebDataset tars: members `name.jpg` and `name.cls` (or .json, .txt) make one sample; the key is `shard.tar/name`.

The listing walks the tar headers once and keeps the offset of every image, so that images are then read by byte range
and nothing is ever extracted. The members of a sample need not be neighbors. A label is an integer or a name; in JSON
it is the field label, cls or class.

Limits. Compressed tars have no random access and are refused (images do not compress). On a remote filesystem the walk
reads through every shard. A sample's name ends at the first dot of its file name, as in the webdataset library.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydd.data.decode import SUFFIXES
from raydd.data.listing import SCHEMA, Listing, number_labels
from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.plain import parse_json
from raydd.store.reach import translate

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABEL_SUFFIXES = (".cls", ".json", ".txt")
LABEL_FIELDS = ("label", "cls", "class")
MAX_LABEL_BYTES = 65_536
# What tarfile raises on bytes that are no tar, or are meant to break it.
DAMAGE = (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError, MemoryError, RecursionError)
LISTING_THREADS = 8


class _Sample(NamedTuple):
    key: str
    value: int | str | None
    shard: str
    start: int
    nbytes: int


def list_images(uri: str, sizes: Mapping[str, int], names: tuple[str, ...] | None) -> Listing:
    """Listing of the tars among `sizes` below `uri`; unsafe names, damaged shards and duplicates are reported.

    Raises `UserError` for compressed tars.
    """
    if compressed := sorted(path for path in sizes if path.endswith(COMPRESSED)):
        raise UserError(f"{uri}: {compressed[0]} is compressed and cannot be read by range: unpack it to a plain .tar")
    paths = sorted(path for path in sizes if path.endswith(SUFFIX))
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        shards = list(pool.map(lambda path: _list_shard(uri, path), paths))
    samples = [sample for found, _ in shards for sample in found]
    problems = [problem for _, found in shards for problem in found]
    labels, classes, bad = number_labels([s.value for s in samples], [s.key for s in samples], names)
    table = pa.table(
        [
            pa.array([s.key for s in samples], pa.string()),
            pa.array(labels),
            pa.array([s.shard for s in samples], pa.string()),
            pa.array([s.start for s in samples], pa.int64()),
            pa.array([s.nbytes for s in samples], pa.int64()),
            pa.array(np.repeat(np.arange(len(paths), dtype=np.int32), [len(found) for found, _ in shards])),
        ],
        SCHEMA,
    )
    return Listing(table.filter(pc.greater_equal(table["label"], 0)), classes, tuple(problems + bad))


def fetch(uri: str, rows: pa.Table) -> list[bytes]:
    """Bytes of each row, in order, by byte ranges; b"" where the shard is gone."""
    starts = rows["start"].to_numpy()
    ends = starts + rows["nbytes"].to_numpy()
    return files.read_many(uri, rows["file"].to_pylist(), starts.tolist(), ends.tolist())


def _list_shard(uri: str, path: str) -> tuple[list[_Sample], list[tuple[str, str]]]:
    images: dict[str, tarfile.TarInfo] = {}
    values: dict[str, tuple[int, int | str | None]] = {}
    problems: list[tuple[str, str]] = []
    location = files.join(uri, path)
    with files.open_input(location, ahead=True) as stream, translate(location):
        try:
            for member in _members(stream):
                name, suffix = _split_name(member.name)
                if not _is_safe(member.name):
                    problems.append((f"{path}/{_printable(member.name)}", "unsafe member name"))
                elif suffix in SUFFIXES and images.setdefault(name, member) is not member:
                    problems.append((f"{path}/{name}", f"a second image ({suffix}) of one sample"))
                elif suffix in LABEL_SUFFIXES:
                    rank = LABEL_SUFFIXES.index(suffix)
                    if name not in values or rank < values[name][0]:
                        values[name] = (rank, _read_label(stream, member, suffix))
        except DAMAGE as error:
            if "range requests" in str(error):
                raise  # the server, not the tar
            problems.append((path, f"damaged tar: {error or type(error).__name__}"))
    samples = [
        _Sample(f"{path}/{name}", values.get(name, (0, None))[1], path, member.offset_data, member.size)
        for name, member in sorted(images.items(), key=lambda item: item[1].offset_data)
    ]
    return samples, problems


class _Member(tarfile.TarInfo):
    """A member whose size cannot be negative: before Python 3.11.14, tarfile walks back and forth for ever."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.InvalidHeaderError("negative size")
        return super()._block(count)


def _members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Regular files of the tar, each once it is sure that its bytes are all there.

    Raises `tarfile.TarError` where the tar is cut off or damaged; what came before stays good.
    """
    with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as archive:
        member = archive.next()
        while member is not None:
            archive.members = []  # tarfile would keep a record of every member
            following = archive.next()  # raises if this member's bytes are cut off
            if member.isreg() and not member.issparse():
                yield member
            member = following
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros, or nothing.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("bad header")


def _read_label(stream: BinaryIO, member: tarfile.TarInfo, suffix: str) -> int | str | None:
    if member.size > MAX_LABEL_BYTES:
        return None
    stream.seek(member.offset_data)
    text = stream.read(member.size).decode("utf-8", "replace").strip()
    return _json_label(text) if suffix == ".json" else _number_or_name(text)


def _json_label(text: str) -> int | str | None:
    try:
        fields = parse_json(text)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        fields = {"label": fields}
    value = next((fields[name] for name in LABEL_FIELDS if name in fields), None)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return _number_or_name(value) if isinstance(value, str) else value


def _number_or_name(text: str) -> int | str | None:
    # "02096294" is a name: as a number it would lose its zero.
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", text):
        return int(text)
    return text or None


def _split_name(name: str) -> tuple[str, str]:
    """Sample name (up to the first dot of the file name) and lower-case suffix (from the last dot; none if hidden)."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, rest = base.partition(".")
    suffix = f".{rest.rsplit('.', 1)[-1].lower()}" if stem and dot else ""
    return (f"{folder}/{stem}" if folder else stem), suffix


def _is_safe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return not name.startswith(("/", "\\")) and ".." not in parts and _printable(name) == name


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]
