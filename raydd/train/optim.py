"""Optimizers of the student protocols."""

import torch
from torch import nn

from raydd.train.protocol import Protocol


def parameter_groups(net: nn.Module, weight_decay: float, matrices_only: bool) -> list[dict]:
    """Parameter groups with decay on all parameters, or only on those with two or more dimensions (RDED)."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not matrices_only:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(net: nn.Module, protocol: Protocol, arch: str) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW with betas .9 and .999, at the protocol's base rate for `arch`."""
    groups = parameter_groups(net, protocol.weight_decay, protocol.wd_on_matrices_only)
    lr = protocol.lr_for(arch)
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=protocol.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)
