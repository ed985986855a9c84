"""The memory layout in which a network runs fastest."""

import torch
from torch import nn


def memory_format(net: nn.Module, device: torch.device) -> torch.memory_format:
    """`channels_last`, except on a CPU for networks with GroupNorm (instance norm).

    On a CPU, group norm is slow in that layout: a ConvNet-3 step at batch 64 in bf16 took 369 ms against 137 ms, while
    with batch norm it took 89 ms against 141 ms.
    """
    if device.type == "cpu" and any(isinstance(module, nn.GroupNorm) for module in net.modules()):
        return torch.contiguous_format
    return torch.channels_last
