"""A network's parameters as one flat vector, in a fixed order, and the network as a function of it.

Trajectories of parameters (MTT, arXiv 2203.11932) are points of one vector space: distances, sums and derivatives by
all parameters are then plain tensor operations. Networks with buffers that change in training have no such form.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FlatNet:
    """`net` as a function of (flat parameters [P], images [B, 3, S, S]) -> logits [B, K].

    `names` and `shapes` fix the order of the parameters, that of `net.named_parameters()`. The network's own parameters
    are never changed. Raises `ValueError` for a network with buffers, whose state the vector would not hold.
    """

    def __init__(self, net: nn.Module):
        if any(True for _ in net.buffers()):
            raise ValueError(f"{type(net).__name__} has buffers (batch norm?): only parameters can be flat")
        self.net = net
        self.names = [name for name, _ in net.named_parameters()]
        self.shapes = [tuple(parameter.shape) for parameter in net.parameters()]
        self.sizes = [parameter.numel() for parameter in net.parameters()]

    def __len__(self) -> int:
        return sum(self.sizes)

    def __call__(self, flat: Tensor, images: Tensor) -> Tensor:
        return functional_call(self.net, self.split(flat), (images,))

    def parameters(self) -> Tensor:
        """A copy of the network's own parameters, [P]."""
        return torch.cat([parameter.detach().flatten() for parameter in self.net.parameters()])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector by parameter name."""
        parts = zip(self.names, flat.split(self.sizes), self.shapes)
        return {name: part.view(shape) for name, part, shape in parts}
