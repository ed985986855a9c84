"""The loss of noise optimization with its gradient in closed form (DsCo; spec section 3.6).

    z = (phi(mu + s eps) - mean) / std,   L_sort = sum |r| + r^2,   r = z - q[rank of z along the K samples]
    L_norm = sum_j |d_j| + d_j^2,         d_j = ||eps_j|| - sqrt(D)
    J = kappa / F * K * L_sort + norm_weight * L_norm

The gradient of L_sort to z is sign(r) + 2 r, the same as through the sort; ties are ranked by sample index. The feature
net's own backward takes it to eps, so nothing here builds a graph. Samples of several classes lie one class after
another; their targets are stacked, and no term joins two classes.
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
    """r [..., K, F]: z minus the quantile of its rank among the K samples, per feature (and class)."""
    columns = z.mT.contiguous()
    order = columns.argsort(dim=-1, stable=True)
    return z - torch.empty_like(columns).scatter_(-1, order, quantiles.mT).mT


def absolute_and_square(t: Tensor) -> tuple[Tensor, Tensor]:
    """sum |t| + t^2 over the last two axes, and its gradient."""
    return (t.abs() + t.square()).sum((-2, -1)), t.sign() + 2 * t


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

    `targets` are, per net, those of B classes (`targets.stacked`); mean [B * K, Ch, H, W]; std broadcasts to it.
    """

    nets: Sequence[FeatureNet]
    targets: Sequence[Targets]
    mean: Tensor
    std: Tensor
    config: DscoConfig

    def loss(self, noise: Tensor) -> Tensor:
        """l [B], each class's sort loss per sample and feature, averaged over nets: what to log and to compare by."""
        x = self.mean + self.std * noise
        found = [_residual(net(x), target) for net, target in zip(self.nets, self.targets)]
        return sum(absolute_and_square(r)[0] / r[0].numel() for r in found) / len(found)

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """l [B], and the gradient of J to the noise [B * K, Ch, H, W]."""
        x, grad, total = self.mean + self.std * noise, torch.zeros_like(noise), 0.0
        for net, target in zip(self.nets, self.targets):
            features, tape = net.forward(x)
            count = FIXED_COUNT if self.config.k_scaling == "fixed" else target.quantiles.shape[1]
            loss, slope = absolute_and_square(_residual(features, target))
            slope = slope * (self.config.kappa * count / net.features / len(self.nets) / target.std)
            grad = grad + net.backward(tape, slope.flatten(0, 1)) * self.std
            total = total + loss / slope[0].numel() / len(self.nets)
        if self.config.norm == "penalty":
            grad = grad + self.config.norm_weight * norm_gradient(noise)
        return total, grad


def _residual(features: Tensor, target: Targets) -> Tensor:
    """r [B, K, F] of features [B * K, F]."""
    z = (features.view(target.quantiles.shape) - target.mean) / target.std
    return sort_residual(z, target.quantiles)
