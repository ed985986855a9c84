"""A half-done training in one safetensors file: tensors, the epochs done, and which training it belongs to."""

from typing import Protocol

import safetensors.torch
from torch import Tensor

from raydd.errors import UserError
from raydd.store import filesystem
from raydd.store.plain import load_tensors, safetensors_header


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
        data = filesystem.read_bytes(uri)
    except FileNotFoundError:
        return False
    try:
        metadata = safetensors_header(data).get("__metadata__", {})
    except ValueError as error:
        raise UserError(f"{uri} is damaged ({error}): remove it to start that training anew") from error
    if metadata.get("identity") != identity:
        raise UserError(
            f"{uri} is a half-done training of another recipe or source: repeat that command to finish it, "
            "choose another --out, or start anew with --force"
        )
    training.restore(load_tensors(data, uri), int(metadata["epoch"]))
    return True
