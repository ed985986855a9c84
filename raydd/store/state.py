"""`RUN/state/<unit>.safetensors`: a half-done unit, from which the same unit goes on after its worker was lost.

Tensors plus a few plain facts in the file's metadata: the unit's name, the hash of its configuration, and the step that
comes next (dsco.md, section 12). What can be drawn again from a keyed generator is not saved. A state of another
configuration, or a file that cannot be read, is no error: it is refused, logged (`state_refused`), and the unit starts
afresh. Written atomically, so that a kill while saving leaves the state before.

Decision (ours): the file is named `class-<name>.safetensors`, with a hash where the name has odd characters, because
`state/` also holds folders and the snapshots of students.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from raydd.store import events, filesystem
from raydd.store.plain import parse_json, safetensors_header
from raydd.store.run import Run

RECORD = "raydd"
LONGEST = 100


@dataclasses.dataclass(frozen=True)
class State:
    """What a unit saved: named tensors on the CPU, the step that comes next, and plain JSON facts."""

    tensors: dict[str, Tensor]
    step: int
    facts: dict[str, Any]


def path(run: Run, unit: str) -> str:
    """Where the state of a unit lies; different names give different files."""
    name = re.sub(r"[^\w.+-]+", "_", unit, flags=re.ASCII)[:LONGEST]
    if name != unit:
        name += "-" + hashlib.sha256(unit.encode()).hexdigest()[:8]
    return run.path("state", f"class-{name}.safetensors")


def save(
    run: Run, unit: str, tensors: Mapping[str, Tensor], *, step: int, config_hash: str, facts: Mapping[str, Any]
) -> None:
    """Replace the state of a unit; tensors are copied to the CPU, `facts` are plain JSON values."""
    record = {"unit": unit, "config_hash": config_hash, "step": step, "facts": dict(facts)}
    # Own memory for each: safetensors refuses tensors that share it, as slices of one buffer do.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    filesystem.write_atomic(path(run, unit), safetensors.torch.save(copies, {RECORD: json.dumps(record)}))


def load(run: Run, unit: str, config_hash: str) -> State | None:
    """The state of a unit; None if there is none, or one of another configuration, which is then logged."""
    uri = path(run, unit)
    if not filesystem.exists(uri):
        return None
    data = filesystem.read_bytes(uri)
    try:
        record = _record(data)
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        events.append(run, "state_refused", name=unit, reason=f"cannot be read: {' '.join(str(error).split())[:120]}")
        return None
    if (record["unit"], record["config_hash"]) != (unit, config_hash):
        reason = f"made by configuration {record['config_hash']}, not {config_hash}"
        events.append(run, "state_refused", name=unit, reason=reason)
        return None
    return State(tensors, record["step"], record["facts"])


def delete(run: Run, unit: str) -> None:
    """Remove the state of a unit; nothing to do where there is none."""
    filesystem.remove_tree(path(run, unit))


def _record(data: bytes) -> dict[str, Any]:
    return parse_json(safetensors_header(data)["__metadata__"][RECORD])
