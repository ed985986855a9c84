"""What the samples are matched to at a step: quantiles of every feature of the noised real images (spec section 3.5).

R noised copies of all N real latents give M = R * N rows; per feature their mean and deviation standardize, and the
sorted column is quantized to K values, the means of K parts of equal mass. Where K does not divide M the authors add
images; ours integrates the empirical quantile function exactly, for any M and K.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from raydd.distill.dsco.features import WIDTH, FeatureNet
from raydd.distill.dsco.lattice import copies
from raydd.errors import UserError
from raydd.keyed import hash64, torch_rng

# Images that are noised together; part of the noise's key.
BLOCK = 64
CELLS = 1 << 20
FLOOR = 1e-6


@dataclasses.dataclass(frozen=True)
class Targets:
    """Of B classes: mean, std [B, 1, F] standardize; quantiles [B, K, F] ascend along K."""

    mean: Tensor
    std: Tensor
    quantiles: Tensor


def stacked(found: Sequence[Targets]) -> Targets:
    """The targets of all these classes, in their order."""
    parts = ([getattr(targets, field.name) for targets in found] for field in dataclasses.fields(Targets))
    return Targets(*map(torch.cat, parts))


def noised_features(
    net: FeatureNet, reals: Tensor, level: tuple[float, float], *, rounds: int, strata: str, key: tuple
) -> Tensor:
    """Features [rounds * N, F] of alpha * reals + sigma * noise; reals [N, Ch, H, W] in key order, any float dtype.

    The noise is drawn on the device of `reals` from (*key, block), blocks of 64 images.
    """
    alpha, sigma = level
    found = []
    for block, part in enumerate(reals.split(BLOCK)):
        noise = copies(len(part), rounds, part.shape[1:], _rng(part.device, *key, block), strata)
        rows = alpha * part.to(net.exact) + sigma * noise.to(net.exact)
        found.append(in_parts(net, rows.flatten(0, 1)))
    return torch.cat(found)


def in_parts(net: FeatureNet, x: Tensor) -> Tensor:
    """Features [M, F] of any number of rows, as many at a time as keep the first activation in a cache (4 MB)."""
    rows = max(16, CELLS // (WIDTH * x.shape[2] * x.shape[3]))
    return torch.cat([net(part) for part in x.split(rows)])


def topped_up(features: Tensor, net: FeatureNet, reals: Tensor, level, count: int, key: tuple) -> Tensor:
    """Features with rows of randomly chosen images, noised again, until `count` divides their number (authors)."""
    missing = -len(features) % count
    if not missing:
        return features
    rng = torch_rng(*key, "topup")
    rows = torch.randint(len(reals), (missing,), generator=rng)
    noise = torch.randn(missing, *reals.shape[1:], generator=rng).to(reals.device)
    extra = level[0] * reals[rows.to(reals.device)].to(net.exact) + level[1] * noise.to(net.exact)
    return torch.cat([features, in_parts(net, extra)])


def make_targets(features: Tensor, count: int, class_name: str = "") -> Targets:
    """Standardization and `count` quantiles of one class's features [M, F]; `UserError` for a single row."""
    if len(features) < 2:
        raise UserError(f"class {class_name!r} has one image and --rounds 1: use more rounds")
    columns = features.T.contiguous().sort(1).values.double()
    std, mean = torch.std_mean(columns, 1, correction=0)
    std = std.clamp(min=max(FLOOR * float(std.median()), torch.finfo(torch.float32).tiny))
    parts = ((quantiles(columns, count) - mean[:, None]) / std[:, None]).T.contiguous()
    return Targets(*(t.to(features.dtype)[None] for t in (mean[None], std[None], parts)))


def quantiles(columns: Tensor, count: int) -> Tensor:
    """Means of `count` parts of equal mass of ascending rows [F, M], as [F, count]; accumulated in float64.

    q_k = K * (S((k+1)/K) - S(k/K)), S the running mean integral, linear between its M + 1 knots.
    """
    size = columns.shape[1]
    running = torch.nn.functional.pad(columns.double().cumsum(1), (1, 0)) / size
    at = torch.arange(count + 1, dtype=torch.float64, device=columns.device) * size / count
    # Exact knots where count divides; the last edge must stay inside.
    low = (torch.arange(count + 1, device=columns.device) * size).div(count, rounding_mode="floor").clamp(max=size - 1)
    share = at - low
    edges = running[:, low] + share * (running[:, low + 1] - running[:, low])
    return count * edges.diff(dim=1)


def _rng(device: torch.device, *key: object) -> torch.Generator:
    """A keyed generator on the device of the draws: the noise of a class is too much to move (it may differ by
    device type)."""
    return torch.Generator(device).manual_seed(hash64(*key) >> 1)
