"""A half-done training in one safetensors file: tensors, the epochs done, and which training it belongs to."""

import json
from typing import Protocol

import safetensors.torch
from torch import Tensor

from raydd.errors import UserError
from raydd.models.checkpoint import read_weights
from raydd.store import filesystem


class Training(Protocol):
    """What can be stopped and gone on with: `epoch` counts what is done (steps, for a prior)."""

    epoch: int

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor], epoch: int) -> None: ...


def save_training(uri: str, training: Training, identity: str) -> None:
    """Write the state after the last full epoch, atomically."""
    metadata = {"epoch": str(training.epoch), "identity": identity}
    filesystem.write_atomic(uri, safetensors.torch.save(training.state(), metadata))


def restore_training(uri: str, training: Training, identity: str) -> bool:
    """Go on from what `save_training` wrote; False if there is nothing. `UserError` if it is of another training."""
    try:
        header = int.from_bytes(filesystem.read_bytes(uri, 0, 8), "little")
    except FileNotFoundError:
        return False
    metadata = json.loads(filesystem.read_bytes(uri, 8, 8 + header)).get("__metadata__", {})
    if metadata.get("identity") != identity:
        raise UserError(
            f"{uri} is a half-done training of another recipe or source: repeat that command to finish it, "
            "choose another --out, or start anew with --force"
        )
    training.restore(read_weights(uri), int(metadata["epoch"]))
    return True
