"""The loss of noise optimization with its gradient in closed form (DsCo; spec section 3.6).

    z = (phi(mu + s eps) - mean) / std,   L_sort = sum |r| + r^2,   r = z - q[rank of z along the K samples]
    L_norm = sum_j |d_j| + d_j^2,         d_j = ||eps_j|| - sqrt(D)
    J = kappa / F * K * L_sort + norm_weight * L_norm

The gradient of L_sort to z is sign(r) + 2 r, the same as through the sort; ties are ranked by sample index. The feature
net's own backward takes it to eps, so nothing here builds a graph.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import FeatureNet
from raydd.distill.dsco.targets import Targets

FIXED_COUNT = 10


def sort_residual(z: Tensor, quantiles: Tensor) -> Tensor:
    """r [K, F]: z minus the quantile of its rank among the K samples, per feature."""
    order = z.T.contiguous().argsort(dim=1, stable=True)
    assigned = torch.empty_like(z.T, memory_format=torch.contiguous_format).scatter_(1, order, quantiles.T)
    return z - assigned.T


def absolute_and_square(t: Tensor) -> tuple[Tensor, Tensor]:
    """sum |t| + t^2, and its gradient."""
    return (t.abs() + t.square()).sum(), t.sign() + 2 * t


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """values [K] shaped to broadcast over `like` [K, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))


def norm_gap(noise: Tensor) -> Tensor:
    """||eps_j|| - sqrt(D) of every sample, [K]."""
    return noise.flatten(1).norm(dim=1) - math.sqrt(noise[0].numel())


def norm_gradient(noise: Tensor) -> Tensor:
    """Gradient of L_norm to the noise."""
    gap = norm_gap(noise)
    return noise * per_sample((gap.sign() + 2 * gap) / (gap + math.sqrt(noise[0].numel())), noise)


def shell(noise: Tensor) -> Tensor:
    """Every sample rescaled to the norm sqrt(D)."""
    return noise * per_sample(math.sqrt(noise[0].numel()) / noise.flatten(1).norm(dim=1), noise)


@dataclasses.dataclass(frozen=True)
class Matching:
    """The objective of one step: nets and their targets, and where the noise leads, x = mean + std * noise.

    mean [K, Ch, H, W]; std broadcasts to it.
    """

    nets: Sequence[FeatureNet]
    targets: Sequence[Targets]
    mean: Tensor
    std: Tensor
    config: DscoConfig

    def loss(self, noise: Tensor) -> Tensor:
        """l, the sort loss per sample and feature, averaged over nets: the number to log and to compare runs by."""
        found = [_residual(net(self.mean + self.std * noise), target) for net, target in zip(self.nets, self.targets)]
        return sum(absolute_and_square(r)[0] / r.numel() for r in found) / len(found)

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """l, and the gradient of J to the noise [K, Ch, H, W]."""
        x, count = self.mean + self.std * noise, len(noise)
        pull = self.config.kappa * (FIXED_COUNT if self.config.k_scaling == "fixed" else count)
        total, grad = torch.zeros((), device=noise.device), torch.zeros_like(noise)
        for net, target in zip(self.nets, self.targets):
            features, tape = net.forward(x)
            loss, slope = absolute_and_square(_residual(features, target))
            slope = slope * (pull / net.features / len(self.nets) / target.std)
            grad = grad + net.backward(tape, slope) * self.std
            total = total + loss / slope.numel() / len(self.nets)
        if self.config.norm == "penalty":
            grad = grad + self.config.norm_weight * norm_gradient(noise)
        return total, grad


def _residual(features: Tensor, target: Targets) -> Tensor:
    return sort_residual((features - target.mean) / target.std, target.quantiles)
