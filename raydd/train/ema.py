"""Exponential average of a student's weights; the average is what the `glad` protocol tests."""

import copy

import torch
from torch import nn


class Ema:
    """Shadow copy of `net`. At update k = 0, 1, ... it becomes d * shadow + (1 - d) * net, d = min(decay, k / (k + 1)).

    The ramp makes the first updates a plain mean of the weights seen, so the random start leaves no trace.
    Integer buffers are copied.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.net = copy.deepcopy(net).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the current weights of `net`."""
        weight = 1 - min(self.decay, self.updates / (self.updates + 1))
        for shadow, value in zip(self.net.state_dict().values(), net.state_dict().values()):
            if shadow.is_floating_point():
                shadow.lerp_(value, weight)
            else:
                shadow.copy_(value)
        self.updates += 1
