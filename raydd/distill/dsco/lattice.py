"""Stratified noise: the start of sampling, and the copies of a real image (DsCo; spec section 3.3 and 3.5).

For every coordinate on its own, K samples take one value each from K strata of equal probability. At the strata's
middles (`lattice`) every coordinate holds the same K values, whose variance is below 1 and which are 0 for K = 1.
"""

import math

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Generator, Tensor

from raydd.keyed import hash64, torch_rng

EDGE = 1e-7


def normal_quantile(u: Tensor) -> Tensor:
    """The standard normal's quantile of u, which is kept within [1e-7, 1 - 1e-7]."""
    return math.sqrt(2) * torch.erfinv(2 * u.clamp(EDGE, 1 - EDGE) - 1)


def lattice(count: int, shape: tuple[int, ...], rng: Generator, jitter: bool = False) -> Tensor:
    """float32 [count, *shape]: per coordinate a random permutation of the strata, at their middles or jittered."""
    strata = torch.rand(count, *shape, generator=rng).argsort(0)
    inside = torch.rand(count, *shape, generator=rng, dtype=torch.float64) if jitter else 0.5
    return normal_quantile((strata.double() + inside) / count).float()


def copies(count: int, rounds: int, shape: tuple[int, ...], rng: Generator, strata: str) -> Tensor:
    """float32 [rounds, count, *shape] on the generator's device: noise of which every image and coordinate has one draw
    per stratum over the rounds. `systematic` shifts one uniform draw by r / rounds; `jittered` permutes the strata."""
    if strata == "systematic":
        first = torch.rand(count, *shape, generator=rng, device=rng.device)
        shift = torch.arange(rounds, device=rng.device).view(-1, *[1] * first.dim()) / rounds
        return normal_quantile((first + shift).frac())
    order = torch.rand(rounds, count, *shape, generator=rng, device=rng.device).argsort(0)
    inside = torch.rand(rounds, count, *shape, generator=rng, device=rng.device)
    return normal_quantile((order + inside) / rounds)


def start_noise(kind: str, count: int, shape: tuple[int, ...], key: tuple, unit_variance: bool = False) -> Tensor:
    """float32 [count, *shape] for the starts `lattice`, `stratified` and `gaussian`; one image is always gaussian."""
    rng = torch_rng(*key)
    if kind == "gaussian" or count == 1:
        return torch.randn(count, *shape, generator=rng)
    noise = lattice(count, shape, rng, jitter=kind == "stratified")
    return noise / noise.square().mean(0).sqrt() if unit_variance else noise


def medoids(reals: Tensor, count: int, key: tuple) -> list[int]:
    """Rows of reals [N, ...] nearest to `count` k-means centers; rows repeat where there are fewer than `count`."""
    rows = reals.flatten(1).double().cpu().numpy()
    # One thread, wherever it runs: partial sums of several would be added in another order.
    with threadpool_limits(1):
        fit = KMeans(min(count, len(rows)), n_init=1, random_state=hash64(*key) % 2**32, max_iter=50).fit(rows)
    distance = torch.cdist(torch.from_numpy(fit.cluster_centers_), torch.from_numpy(rows))
    nearest = [int(i) for i in distance.argmin(1)]
    return [nearest[k % len(nearest)] for k in range(count)]
