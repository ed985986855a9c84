"""From a URI to its fsspec filesystem, and from the many exceptions of remote clients to one line for the user.

fsspec promises no common exception for a network that is down, a wrong endpoint or absent credentials; `translate` is
the one place that knows how each client says so. A missing file stays `FileNotFoundError`, because callers often ask
for what may not exist yet.
"""

import contextlib
import errno
from collections.abc import Iterator

import fsspec

from raydd.errors import UserError, choose, redact

# A remote failure is known by the package that raised it.
CLIENTS = frozenset(
    ("adlfs", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx", "requests", "s3fs", "urllib3")
)
COMMON = ("s3", "gs", "az", "http", "https", "hf", "hdfs", "file", "memory")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


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
        # fsspec's http filesystem reports a refused connection as a missing file, with the truth as the cause.
        if isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, OSError):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"disk full while writing {uri}: free space and run the same command again") from error
        if isinstance(error, PermissionError):
            raise Unreachable(f"no permission for {uri}: check its access rights or your credentials") from error
        if isinstance(error, ValueError) and "range requests" in str(error):
            raise UserError(f"server of {uri} cannot send parts of a file: copy the data to a local path") from error
        if is_local(uri) or not _from_client(error):
            raise
        raise Unreachable(f"cannot reach {uri} ({_brief(error)}): {_remedy(scheme(uri))}") from error


def _from_client(error: Exception) -> bool:
    return isinstance(error, OSError) or any(c.__module__.split(".")[0] in CLIENTS for c in type(error).__mro__)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _remedy(protocol: str) -> str:
    if protocol in ("s3", "s3a"):
        return "check the address, AWS_ENDPOINT_URL, and AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
    if protocol in ("http", "https"):
        return "check the address and that the server is up"
    return "check the address, the network and your credentials"
