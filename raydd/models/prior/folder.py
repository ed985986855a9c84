"""Where a prior's files are: a local directory, any fsspec URI, or a hub id; what they say, and their content hash.

Only JSON and safetensors are ever fetched or read. Files of other URIs are copied into a temporary directory while
they are opened, because diffusers reads local ones only.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from raydd.errors import UserError
from raydd.store import filesystem
from raydd.store.plain import parse_json
from raydd.store.reach import is_local

INDEX, OURS = "model_index.json", "raydd.json"
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# Half-precision copies and the like lie beside the weights that are read.
VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".ema.")


@contextlib.contextmanager
def local_folder(name: str) -> Iterator[str]:
    """A local directory with the prior's JSON and safetensors files, as long as the context lasts.

    Raises `UserError` if there is no prior of that name, or the hub cannot be reached and has left no copy here.
    """
    if is_local(name) and os.path.isdir(os.path.expanduser(name)):
        yield filesystem.absolute(name)
    elif is_local(name):
        if not HUB_ID.fullmatch(name):
            raise UserError(
                f"no prior at {name}: give a directory written by 'raydd train-prior', or a hub id ORG/NAME"
            )
        yield _from_hub(name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for file in filter(is_wanted, filesystem.list_files(name)):
                path = os.path.join(folder, file)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as sink:
                    sink.write(filesystem.read_bytes(filesystem.join(name, file)))
            yield folder


def read_json(folder: str, *name: str) -> dict[str, Any] | None:
    """A JSON object of a local prior, or None if the file is absent. Raises `UserError` for a damaged one."""
    path = os.path.join(folder, *name)
    try:
        with open(path, "rb") as file:
            return parse_json(file.read())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): copy or train the prior again") from error


def is_wanted(name: str) -> bool:
    """Whether a file, relative to the prior, may be read: JSON or safetensors, and no variant."""
    return name.endswith((".json", ".safetensors")) and not any(mark in name for mark in VARIANTS)


def files_hash(folder: str, parts: list[str]) -> str:
    """16 hex digits over names and bytes of the components' JSON and safetensors files; survives copying."""
    total = hashlib.sha256()
    for part in sorted(parts):
        for name in sorted(filter(is_wanted, os.listdir(os.path.join(folder, part)))):
            with open(os.path.join(folder, part, name), "rb") as file:
                total.update(f"{part}/{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors"],
            ignore_patterns=[f"*{mark}*" for mark in VARIANTS],
        )
    except Exception as error:  # the hub's client raises its own, requests', and the system's errors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"prior {name!r} is no directory here, and the hub did not give it ({reason}): "
            "check the name, or download it elsewhere and give the directory"
        ) from error
