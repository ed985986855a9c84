"""`RUN/learned/label=<i>.safetensors`: what was learned for one class, beside the images made of it (ld3m.md, 13).

Latents and conditions, so that the images can be made again with another decoder or more steps; the pictures they
started from, for the report and for the controls of section 7; and the curves of the losses. float16 and uint8 (ours)
keep an image near 10 kB; values beyond float16 become infinite. Facts are plain JSON in the file's metadata.

The images and the rows of a file stand in the same order as the class's distilled images. A file belongs to the report
and to later work: no image depends on it, so one that is damaged is refused with the advice to remove it.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raydd.errors import UserError
from raydd.store import filesystem
from raydd.store.plain import parse_json, safetensors_header
from raydd.store.run import Run

FOLDER = "learned"
RECORD = "raydd"
NAME = re.compile(r"label=(\d+)\.safetensors")
CURVES = {"iteration": torch.int32, "loss": torch.float32, "heldout_iteration": torch.int32, "heldout": torch.float32}
FLOATS = {"latents": torch.float16, "conditions": torch.float16}
PICTURES = {"start": torch.uint8, "initial": torch.uint8}
DTYPES = CURVES | FLOATS | PICTURES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses of one class over the iterations, and plain JSON facts.

    iteration int32 [k], loss float32 [k]: what was stepped on. heldout_iteration int32 [m], heldout float32 [m]: the
    loss on what is never stepped on. facts: class_name, method, config_hash, and numbers_per_image, the count of
    learned numbers or a mapping from part (latent, condition) to count.
    """

    iteration: Tensor
    loss: Tensor
    heldout_iteration: Tensor
    heldout: Tensor
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Curves):
    """What was learned for the n images of one class, on the CPU.

    latents float16 [n,Ch,h,w] in the denoiser's scale; conditions float16 [n,...]; start uint8 [n,3,S,S], the real
    images that the latents started from; initial uint8 [n,3,S,S], the same through the generator before the first step.
    """

    latents: Tensor
    conditions: Tensor | None = None
    start: Tensor | None = None
    initial: Tensor | None = None


def path(run: Run, label: int) -> str:
    """Where the file of a class lies."""
    return run.path(FOLDER, f"label={label}.safetensors")


def learned_labels(run: Run) -> list[int]:
    """Labels of the classes that have a file, ascending."""
    _, names = filesystem.list_directory(run.path(FOLDER))
    return sorted(int(match[1]) for match in map(NAME.fullmatch, names) if match)


def write_learned(run: Run, label: int, learned: Learned) -> None:
    """Replace the file of a class, atomically; numbers are cast to its dtypes, pictures must be uint8 already."""
    found = {name: value.detach() for name in DTYPES if (value := getattr(learned, name)) is not None}
    # Own memory for each: safetensors refuses tensors that share it.
    tensors = {
        name: value.to("cpu", value.dtype if name in PICTURES else DTYPES[name], copy=True).contiguous()
        for name, value in found.items()
    }
    _check(tensors)
    metadata = {RECORD: json.dumps(learned.facts, allow_nan=False)}
    filesystem.write_atomic(path(run, label), safetensors.torch.save(tensors, metadata))


def read_learned(run: Run, label: int) -> Learned | None:
    """What was learned for a class; None if there is no file. Raises `UserError` for a damaged or foreign one."""
    uri = path(run, label)
    if not filesystem.exists(uri):
        return None
    data = filesystem.read_bytes(uri)
    with _refused(uri):
        tensors = safetensors.torch.load(data)
        _check(tensors)
        return Learned(**tensors, facts=_facts(safetensors_header(data)))


def read_curves(run: Run, label: int) -> Curves | None:
    """The curves and facts of a class; None and errors as `read_learned`.

    Reads only their bytes, not the pictures': the curves of a thousand classes are then a few megabytes.
    """
    uri = path(run, label)
    if not filesystem.exists(uri):
        return None
    with _refused(uri):
        length = int.from_bytes(filesystem.read_bytes(uri, 0, 8), "little")
        if length > filesystem.size(uri):
            raise ValueError("cut off")
        header = parse_json(filesystem.read_bytes(uri, 8, 8 + length))
        # The format sorts by size of dtype: the curves are neighbors, and a file once they have a header of their own.
        spans = {name: header[name]["data_offsets"] for name in CURVES}
        first, last = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
        own = {
            name: header[name] | {"data_offsets": [start - first, end - first]} for name, (start, end) in spans.items()
        }
        text = json.dumps(own).encode()
        data = filesystem.read_bytes(uri, 8 + length + first, 8 + length + last)
        curves = safetensors.torch.load(len(text).to_bytes(8, "little") + text + data)
        _check(curves, CURVES)
        return Curves(**curves, facts=_facts(header))


def _facts(header: dict[str, Any]) -> dict[str, Any]:
    return parse_json(header["__metadata__"][RECORD])


def _check(tensors: dict[str, Tensor], needed: Iterable[str] = (*CURVES, "latents")) -> None:
    """Raise `ValueError` for tensors that are absent, of another dtype, or do not belong together."""
    if absent := set(needed) - tensors.keys():
        raise ValueError(f"no {', '.join(sorted(absent))}")
    for name, value in tensors.items():
        if value.dtype != DTYPES.get(name):
            raise ValueError(f"{name} is {value.dtype}")
        if name in PICTURES and value.shape[1:-2] != (3,):
            raise ValueError(f"{name} {list(value.shape)} are no color pictures")
    for x, y in (("iteration", "loss"), ("heldout_iteration", "heldout")):
        if tensors[x].ndim != 1 or tensors[x].shape != tensors[y].shape:
            raise ValueError(f"{y} {list(tensors[y].shape)} over {x} {list(tensors[x].shape)}")
    rows = {name: len(value) for name, value in tensors.items() if name not in CURVES}
    if len(set(rows.values())) > 1:
        raise ValueError(f"rows differ in number: {rows}")


@contextlib.contextmanager
def _refused(uri: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{uri} is damaged or no file of raydd's ({reason}): remove it (no image depends on it), "
            "or distill its class again"
        ) from error
