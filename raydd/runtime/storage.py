"""Where Ray Train keeps its own state: the run's directory, at any fsspec URI."""

from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from raydd.store import filesystem as files
from raydd.store.reach import is_local, resolve


def train_storage(uri: str) -> dict[str, Any]:
    """The arguments of `ray.train.RunConfig` for state at `uri`, which all nodes must reach.

    Ray resolves URIs by pyarrow, which knows fewer schemes and other settings than fsspec, that everything else of a
    run is written through.
    """
    if is_local(uri):
        return {"storage_path": files.absolute(uri)}
    fs, path = resolve(uri)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}
