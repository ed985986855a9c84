"""From a URI to its fsspec filesystem, and from the many exceptions of remote clients to one line for the user.

fsspec promises no common exception for a network that is down, a wrong endpoint or absent credentials; `translate` is
the one place that knows how each client says so. A missing file stays `FileNotFoundError`, because callers often ask
for what may not exist yet.

Storage that fails for a while. The clients of object stores try again by themselves: S3's five times over about 8 s, or
AWS_MAX_ATTEMPTS times with pauses that double (9 times is about two minutes). The client for plain http does not, so
`patiently` does it for reads there, and nowhere else: two loops in one another would wait for the product. What still
fails then is `Unreachable`, in one line; the same command goes on where it stopped.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import fsspec

from raydd.errors import UserError, choose, redact

# A remote failure is known by the package that raised it.
CLIENTS = frozenset(
    ("adlfs", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx", "requests", "s3fs", "urllib3")
)
COMMON = ("s3", "gs", "az", "http", "https", "hf", "hdfs", "file", "memory")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# A mount whose server or process is gone; unlike EIO, which may be one bad file, nothing can be read there.
GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ECONNRESET})
GONE |= {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
PAUSES_S = (0.2, 0.6, 2.0, 5.0)
# What an http server answers that is overloaded, restarted, or behind a gateway that waits for it.
LATER = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


class Unreachable(UserError):
    """A URI that could not be talked to: network, endpoint, credentials or permissions."""


def scheme(uri: str) -> str:
    """Scheme of `uri`, the outermost one for chained URIs (`zip::s3://..`); `file` for a plain local path."""
    if "::" in uri:
        return uri.split("::", 1)[0]
    return uri.split("://", 1)[0] if "://" in uri else "file"


def is_local(uri: str) -> bool:
    """Whether `uri` names a path of this machine."""
    return scheme(uri) in ("file", "local")


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Filesystem and path of `uri`, without touching the network.

    Raises `UserError` for a scheme that fsspec does not know or whose package is not installed, and for a URI with a
    password or a key in it, because URIs are recorded with what was made from them.
    """
    if not uri:
        raise UserError("empty path: expected a directory, a file or a URI such as s3://bucket/name")
    if redact(uri) != uri:
        raise UserError(
            f"{uri} carries a password or a key, and would be written into logs and run.json: take it out, and give "
            "credentials by the environment (AWS_..., or fsspec's FSSPEC_<SCHEME>_<OPTION>)"
        )
    protocol = scheme(uri)
    if protocol not in fsspec.available_protocols():
        choose("URI scheme", protocol, COMMON)
    try:
        with translate(uri):
            return fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        raise UserError(f"cannot open {uri}: {error}".replace("\n", " ")) from error


@contextlib.contextmanager
def translate(uri: str) -> Iterator[None]:
    """Turn failures of the disk or of a remote client into `UserError`; `FileNotFoundError` and our own pass."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not hides_failure(error):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"disk full while writing {uri}: free space and run the same command again") from error
        if isinstance(error, PermissionError):
            raise Unreachable(f"no permission for {uri}: check its access rights or your credentials") from error
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise Unreachable(f"cannot write {uri}: it is on a read-only file system; choose another place") from error
        if isinstance(error, OSError) and is_local(uri) and error.errno in GONE | {errno.EIO}:
            raise Unreachable(f"cannot reach {uri} ({_brief(error)}): check its disk or mount") from error
        if isinstance(error, ValueError) and "range requests" in str(error):
            raise UserError(f"server of {uri} cannot send parts of a file: copy the data to a local path") from error
        if is_local(uri) or not _from_client(error):
            raise
        raise Unreachable(f"cannot reach {uri} ({_brief(error)}): {_remedy(scheme(uri))}") from error


def hides_failure(error: FileNotFoundError) -> bool:
    """Whether a "missing file" is a server that failed: fsspec's http filesystem says so of both, with the cause."""
    cause = error.__cause__
    return isinstance(cause, OSError) or getattr(cause, "status", 404) in LATER or _breaks_off(cause)


def patiently(uri: str, read: Callable[[], T]) -> T:
    """What `read()` returns; over http it is tried again where the server says "later" or breaks off."""
    for pause in PAUSES_S if scheme(uri) in ("http", "https") else ():
        try:
            return read()
        except Exception as error:
            if not will_pass(error):
                raise
        time.sleep(pause)
    return read()


def will_pass(error: BaseException | None) -> bool:
    """Whether an http server that gave this error may give the content in a moment; a refused connection may not."""
    if isinstance(error, FileNotFoundError):
        error = error.__cause__
    return getattr(error, "status", None) in LATER or _breaks_off(error)


def _breaks_off(error: BaseException | None) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(("ClientPayloadError", "ServerDisconnectedError", "TimeoutError", "FSTimeoutError"))


def _from_client(error: Exception) -> bool:
    return isinstance(error, OSError) or any(c.__module__.split(".")[0] in CLIENTS for c in type(error).__mro__)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _remedy(protocol: str) -> str:
    if protocol in ("s3", "s3a"):
        return (
            "check the address, AWS_ENDPOINT_URL, and AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or AWS_PROFILE; "
            "if it is only busy, run the same command again, or raise AWS_MAX_ATTEMPTS"
        )
    if protocol in ("http", "https"):
        return "check the address and that the server is up"
    return "check the address, the network and your credentials; if it is only busy, run the same command again"
