"""One small set of file verbs over local paths and every fsspec URI, used by sources and by run directories.

Decisions. A file appears whole or not at all: where the filesystem renames, through a temporary name in the same
directory (with fsync on a local disk); object stores and `memory://` make an object visible when its single put ends.
Listings are never cached, because other workers write to the same run. Local listings follow symbolic links to
directories (subset folders are often made of them) and cut cycles. A missing file stays `FileNotFoundError`, so that
callers can ask for what may not exist; what a person can mend becomes `UserError`.

Limits. `http(s)://` is read-only and is listed through the server's HTML index. Durability after a power cut is
promised for local disks only.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import BinaryIO

import fsspec

from raydd.errors import UserError
from raydd.store import local_disk
from raydd.store.reach import GONE, hides_failure, is_local, patiently, resolve, scheme, translate, will_pass

READ_ONLY = frozenset({"http", "https"})
# Filesystems on which an object becomes visible only when the put that wrote it is complete.
SINGLE_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2", "memory", "hf"})


def absolute(uri: str) -> str:
    """`uri` in a form that means the same in every process: local paths absolute without `~` or trailing slash."""
    if is_local(uri):
        return resolve(uri)[1]
    return uri.rstrip("/") if not uri.endswith("://") else uri


def join(uri: str, *parts: str) -> str:
    """Append relative parts to a local path or URI with single slashes; `join('memory://', 'a')` is `memory://a`."""
    for part in parts:
        uri = f"{uri}{part}" if uri.endswith("/") or not uri else f"{uri}/{part}"
    return uri


def exists(uri: str) -> bool:
    """Whether a file or a directory is there; an object-store directory exists while it holds something."""
    return _info(uri) is not None


def is_file(uri: str) -> bool:
    """Whether `uri` names one file."""
    info = _info(uri)
    return info is not None and info["type"] == "file"


def size(uri: str) -> int:
    """Bytes of a file; -1 where a server does not tell. Raises `FileNotFoundError`."""
    info = _info(uri)
    if info is None:
        raise FileNotFoundError(uri)
    return -1 if info.get("size") is None else int(info["size"])


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Content of a file, or its bytes `start` to `end` (exclusive). Raises `FileNotFoundError`, `Unreachable`."""
    fs, path = resolve(uri)
    with translate(uri):
        return patiently(uri, lambda: fs.cat_file(path, start=start, end=end))


def open_input(uri: str, *, ahead: bool = False) -> BinaryIO:
    """Seekable binary file; remotely it fetches exactly the ranges asked for, or blocks ahead for walks (`ahead`)."""
    fs, path = resolve(uri)
    with translate(uri):
        return patiently(uri, lambda: fs.open(path, "rb", cache_type="readahead" if ahead else "none"))


def read_many(
    uri: str, names: Sequence[str], starts: Sequence[int] | None = None, ends: Sequence[int] | None = None
) -> list[bytes]:
    """Whole files below `uri`, or one byte range of each, in order and concurrently where the filesystem can.

    A file that is gone, or that this machine's disk cannot read, gives b"". A remote place or a mount that fails raises
    `Unreachable`, so that an outage is never mistaken for broken images.
    """
    fs, path = resolve(uri)
    contents: list[object] = [None] * len(names)

    def fill() -> None:
        left = [i for i, content in enumerate(contents) if not isinstance(content, bytes)]
        first, last = (None if places is None else [places[i] for i in left] for places in (starts, ends))
        found = fs.cat_ranges([join(path, names[i]) for i in left], first, last, on_error="return")
        for i, content in zip(left, found, strict=True):
            contents[i] = content
        for content in found:
            if isinstance(content, Exception) and will_pass(content):
                raise content

    with translate(uri):
        patiently(uri, fill)
    contents = [content if isinstance(content, bytes) else _no_content(uri, content) for content in contents]
    if starts is None or ends is None:
        return contents
    # A plain http server ignores the range and sends the whole file.
    spans = zip(contents, starts, ends, strict=True)
    return [content if len(content) <= end - start else content[start:end] for content, start, end in spans]


def list_files(uri: str) -> list[str]:
    """Sorted paths, relative to `uri`, of all files below it; [] if there is no such directory.

    Temporary files that an interrupted writer left behind are not listed.
    """
    return sorted(list_sizes(uri))


def list_sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below `uri` by relative path, in no particular order; -1 where a server does not tell."""
    fs, path = resolve(uri)
    with translate(uri):
        if is_local(uri):
            return local_disk.walk(path)
        return patiently(uri, lambda: _find(fs, path))


def list_directory(uri: str) -> tuple[list[str], list[str]]:
    """Sorted names of the directories and of the files directly in `uri`; two empty lists if it does not exist."""
    fs, path = resolve(uri)
    try:
        with translate(uri):
            entries = patiently(uri, lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    directories, names = set(), set()
    for entry in entries:
        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
        linked = entry.get("islink") and os.path.isdir(entry["name"])
        if entry["name"].rstrip("/") != path.rstrip("/"):
            (directories if entry["type"] == "directory" or linked else names).add(name)
    return sorted(directories), sorted(name for name in names if not local_disk.is_temporary(name))


def makedirs(uri: str) -> None:
    """Make a directory and its parents; nothing to do where it exists, or where directories are only prefixes."""
    fs, path = resolve(uri)
    _refuse_read_only(uri)
    if scheme(uri) in SINGLE_PUT - {"memory"}:
        return
    with translate(uri):
        try:
            fs.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"cannot make the directory {uri}: a file has that name; choose another --out") from error


def write_atomic(uri: str, data: bytes) -> None:
    """Write a whole file, making its parents; a reader sees the old content or the new, never a part.

    Raises `UserError` when the disk is full (the temporary file is then removed), or the place is read-only or cannot
    be reached.
    """
    _refuse_read_only(uri)
    fs, path = resolve(uri)
    if scheme(uri) in SINGLE_PUT:
        with translate(uri):
            try:
                fs.pipe_file(path, bytes(data))
            except FileNotFoundError as error:
                raise UserError(f"cannot write {uri}: there is no such bucket; make it, or choose another") from error
        return
    makedirs(uri.rsplit("/", 1)[0] if "/" in uri else ".")
    temporary = local_disk.temporary_name(path)
    with translate(uri):
        try:
            if is_local(uri):
                local_disk.replace(path, temporary, data)
            else:
                fs.pipe_file(temporary, bytes(data))
                fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                fs.rm_file(temporary)
            raise


def create(uri: str, data: bytes) -> bool:
    """Write a whole new file, making its parents, unless there is one; whether this call made it.

    Of several callers at once only one is told True: on local disks by a hard link, on S3, GCS and Azure by a
    conditional put. Elsewhere, and on servers that do not know such puts, the place is looked at first, so that two
    calls within milliseconds may both be told True: who must be sure waits, and reads back. Raises as `write_atomic`.
    """
    _refuse_read_only(uri)
    fs, path = resolve(uri)
    if is_local(uri):
        makedirs(uri.rsplit("/", 1)[0] if "/" in uri else ".")
        with translate(uri):
            return local_disk.create(path, data)
    with translate(uri):
        try:
            fs.pipe_file(path, bytes(data), mode="create")
            return True
        except FileExistsError:
            return False
        except (OSError, TypeError, ValueError, NotImplementedError):
            # A store that refuses the condition still takes a plain put; one that is down says so again.
            if fs.exists(path):
                return False
    write_atomic(uri, data)
    return True


def remove_tree(uri: str) -> None:
    """Remove a file, or a directory with all below it; nothing to do where it does not exist."""
    _refuse_read_only(uri)
    fs, path = resolve(uri)
    assert path.strip("/"), "refusing to remove a filesystem root"
    with translate(uri), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def remove_files(uri: str, names: Sequence[str]) -> None:
    """Remove files below `uri`, many per request where the filesystem can; those that are gone do not matter."""
    _refuse_read_only(uri)
    fs, path = resolve(uri)
    with translate(uri):
        try:
            if names:
                fs.rm([join(path, name) for name in names])
        except FileNotFoundError:
            # Some filesystems stop at the first that is gone.
            for name in names:
                remove_tree(join(uri, name))


def _no_content(uri: str, error: BaseException) -> bytes:
    if is_local(uri) and isinstance(error, OSError) and error.errno not in GONE:
        return b""
    try:
        with translate(uri):
            raise error
    except FileNotFoundError:
        return b""


def _info(uri: str) -> dict | None:
    fs, path = resolve(uri)
    try:
        with translate(uri):
            return patiently(uri, lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _find(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, int]:
    root = path.rstrip("/") + "/"
    try:
        found = fs.find(path, detail=True)
    except FileNotFoundError as error:
        if hides_failure(error):
            raise
        return {}
    sizes = {}
    for name, info in found.items():
        relative = name.removeprefix(root).lstrip("/")
        if name != path and not local_disk.is_temporary(relative):
            sizes[relative] = -1 if info.get("size") is None else int(info["size"])
    return sizes


def _refuse_read_only(uri: str) -> None:
    if scheme(uri) in READ_ONLY:
        raise UserError(f"cannot write to {uri}: http is read-only; choose a local path or an object store")
