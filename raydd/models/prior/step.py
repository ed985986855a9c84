"""One stochastic step from level i to level i - 1, for every Gaussian path, and plain samples of a prior.

With (alpha, sigma) entering and (alpha', sigma') leaving (dsco.md, section 3.1):

    s^2 = eta^2 * sigma'^2 * max(0, 1 - (alpha * sigma' / (alpha' * sigma))^2)
    mu  = alpha' * clean + sqrt(sigma'^2 - s^2) * noise

At eta = 1 this is the DDPM posterior with the small fixed variance, and DDIM (arXiv 2010.02502, eq. 12 and 16); eta = 0
is deterministic. A learned-range variance (arXiv 2102.09672, eq. 15) replaces s at eta = 1 and leaves mu alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prediction, Prior, Schedule

SMALLEST = 1e-20  # of a variance, before its logarithm


def posterior(prediction: Prediction, schedule: Schedule, i: int, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean fp32 [n,Ch,H,W] and standard deviation of x_{i-1} given x_i.

    The deviation is fp32, a scalar [] or, with a learned variance, [n,Ch,H,W]; exactly 0 into the clean level -1.
    """
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(i), schedule.level(i - 1)
    clean, noise = prediction.clean, prediction.noise
    small = sigma_next**2 * max(0.0, 1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2)
    variance = eta**2 * small
    mean = alpha_next * clean + math.sqrt(max(0.0, sigma_next**2 - variance)) * noise
    if prediction.variance is None or eta != 1 or sigma_next == 0:
        return mean, torch.tensor(math.sqrt(variance), dtype=torch.float32, device=mean.device)
    large = 1 - (alpha / alpha_next) ** 2
    share = (prediction.variance.float() + 1) / 2
    log = share * math.log(max(large, SMALLEST)) + (1 - share) * math.log(max(small, SMALLEST))
    return mean, (0.5 * log).exp()


def check_finite(x: Tensor, i: int, what: str = "the prior") -> None:
    """Raise `UserError` that names the step if `x` holds NaN or infinity."""
    if not torch.isfinite(x).all():
        raise UserError(f"{what} gave NaN or infinity at step {i}: try --precision fp32, or another prior")


@torch.no_grad()
def sample(
    prior: Prior,
    labels: Tensor | None,
    keys: Sequence[tuple[object, ...]],
    *,
    steps: int = 50,
    guidance: float = 1.0,
    eta: float = 1.0,
    batch: int = 64,
) -> Tensor:
    """Plain latents fp32 [n,Ch,H,W] of the prior, `batch` at a time.

    labels: int64 [n], or None for an unconditional prior. keys: one tuple per image, the only source of its randomness,
    so that neither the batch size nor the other images matter (up to rounding inside the network). Raises `UserError`
    that names the step if the prior gives NaN.
    """
    schedule = prior.schedule(steps)
    parts = []
    for start in range(0, len(keys), batch):
        some = keys[start : start + batch]
        x = schedule.start * _draw(prior, some, "start")
        chosen = None if labels is None else labels[start : start + batch]
        for i in reversed(range(len(schedule))):
            mean, std = posterior(prior.denoise(x, schedule, i, chosen, guidance), schedule, i, eta)
            check_finite(mean, i)
            x = mean + std * _draw(prior, some, i) if eta and i else mean
        parts.append(x)
    return torch.cat(parts)


def _draw(prior: Prior, keys: Sequence[tuple[object, ...]], part: object) -> Tensor:
    return torch.cat([prior.draw(1, torch_rng("sample", *key, part)) for key in keys])
