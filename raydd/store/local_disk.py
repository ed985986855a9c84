"""Files of a local disk: written whole or not at all, synced, and listed with symbolic links followed."""

import contextlib
import errno
import os
import secrets
import stat

TEMP_MARK = ".tmp-"


def temporary_name(path: str) -> str:
    """A new name beside `path`, which no listing shows."""
    parent, name = os.path.split(path)
    return f"{parent}/.{name}{TEMP_MARK}{secrets.token_hex(6)}"


def is_temporary(path: str) -> bool:
    """Whether a file is what an interrupted writer left behind."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith(".") and TEMP_MARK in name


def replace(path: str, temporary: str, data: bytes) -> None:
    """Write `data` under a temporary name of the same directory, then rename it to `path`; both are synced to disk."""
    _write_new(temporary, data)
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        # Some network mounts cannot sync a directory; the rename itself has happened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(directory)


def create(path: str, data: bytes) -> bool:
    """Write a whole new file unless there is one; whether this call made it: of several at once, one is told True."""
    temporary = temporary_name(path)
    try:
        _write_new(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            # Some mounts have no hard links: exclusive, but a reader may see the file while it is still empty.
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            try:
                _write_new(path, data)
            except FileExistsError:
                return False
        return True
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def walk(root: str) -> dict[str, int]:
    """Bytes of every file below `root` by relative path; links to directories are followed, cycles cut."""
    if not os.path.isdir(root):
        return {}
    sizes: dict[str, int] = {}
    stack = [("", frozenset({os.path.realpath(root)}))]
    while stack:
        prefix, ancestors = stack.pop()
        with os.scandir(os.path.join(root, prefix)) as entries:
            for entry in entries:
                relative = f"{prefix}/{entry.name}" if prefix else entry.name
                try:
                    status = entry.stat()
                except OSError:
                    continue  # a dangling link, or a file removed since the directory was opened
                if stat.S_ISDIR(status.st_mode):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in ancestors:
                        stack.append((relative, ancestors | {os.path.realpath(entry.path)}))
                elif stat.S_ISREG(status.st_mode) and not is_temporary(relative):
                    sizes[relative] = status.st_size
    return sizes


def _write_new(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
