"""A half-trained student as a flat dictionary of tensors, which safetensors can store.

The caller decides where a snapshot lives; this module says what is in it: weights and buffers, their average, the
optimizer's state, and a JSON record as bytes. The learning rate, the batch order and all augmentation are functions of
the step, and need no saving. A snapshot of another job (protocol, student, seed, set) is ignored.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydd.train.ema import Ema


@dataclass(frozen=True)
class Snapshots:
    """Where to keep the snapshot of one training: `load` returns the last one or None; `save` replaces it.

    Tensors are on the CPU and contiguous. Saved at most every `every_s` seconds, and never after the last step.
    """

    load: Callable[[], Mapping[str, Tensor] | None]
    save: Callable[[dict[str, Tensor]], None]
    every_s: float = 60.0


def pack(net: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer, record: dict) -> dict[str, Tensor]:
    """Everything needed to go on, copied to the CPU; `record` is plain JSON."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{name}": value for name, value in ema.net.state_dict().items()}
        record = record | {"ema_updates": ema.updates}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return copies | {"record": torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)}


def read_record(tensors: Mapping[str, Tensor]) -> dict:
    """The JSON record of a snapshot."""
    return json.loads(bytes(tensors["record"].tolist()))


def unpack(tensors: Mapping[str, Tensor], net: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer) -> None:
    """Put a snapshot into freshly built objects of the same job."""
    net.load_state_dict(_below(tensors, "net."))
    if ema is not None:
        ema.net.load_state_dict(_below(tensors, "ema."))
        ema.updates = read_record(tensors)["ema_updates"]
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in _below(tensors, "optimizer.").items():
        index, entry = name.split(".", 1)
        # Strides must be the parameter's: others would take another kernel, which may round differently.
        like = parameters[int(index)].detach() if value.ndim else value
        state.setdefault(int(index), {})[entry] = torch.empty_like(like, device="cpu").copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
