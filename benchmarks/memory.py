"""How much memory a call needs: bytes of live tensors, bytes that a graph keeps, and the process as the system sees it.

The three are independent. Live tensors are followed storage by storage and leave out what libraries allocate inside;
saved tensors are what autograd is handed; the process is everything, with what the allocator holds back.
"""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made inside and still alive: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What comes in unknown was there before, and is not ours; views of it come out again.
        tree_map_only(Tensor, lambda tensor: self._meet(tensor, 0), (args, kwargs))
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda tensor: self._meet(tensor, tensor.untyped_storage().nbytes()), made)
        return made

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self._sizes:
            self._sizes[place] = size
            weakref.finalize(storage, self._drop, place)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


def live_peak(call: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes of tensors at one time that `call` made; on CUDA what its allocator handed out."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        call()
    return live.peak


def saved_bytes(call: Callable[[], object]) -> int:
    """Bytes that the graph of `call` keeps for its gradients, each storage once, parameters apart.

    What is inside a checkpoint is not kept, and not seen; its inputs are.
    """
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = call()
    del graph
    return sum(sizes.values())


def resident_peak(call: Callable[[], object]) -> int:
    """Most bytes that the process had resident during `call`, above those before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10
