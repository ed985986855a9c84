"""Step sizes that fit the prior: so large that one step moves a tensor by a given share of its size (ours).

The published rates belong to one prior, whose latents and embeddings have an RMS of about 1. A DiT's table is far
smaller, a pixel-space prior's gradients are not those of an autoencoder. So the gradient's RMS is averaged over a few
iterations in which nothing moves (ld3m.md, section 6).
"""

import math

from torch import Tensor

from raydd.distill.ld3m.loop import Descent, Rates
from raydd.errors import UserError

ITERATIONS = 10
DIGITS = 3


def calibrate(descent: Descent, z: Tensor, c: Tensor | None) -> Rates:
    """Rates for which a plain step moves z and c by `move` of their RMS; given rates are taken as they are.

    Rounded to three digits, so that the last bits of another device do not make another run. Adam's steps do not
    depend on the gradient's size: there the share of the tensor's size is the rate. Raises `UserError` where no
    gradient arrives.
    """
    config = descent.config
    given, sums = [config.lr_latent, config.lr_cond], [0.0, 0.0]
    needed = [
        learned and rate is None and value is not None for learned, rate, value in zip(config.learns, given, (z, c))
    ]
    if any(needed) and config.optimizer == "sgd":
        for iteration in range(ITERATIONS):
            _, gradients = descent.gradients(z, c, iteration)
            # What an objective learns itself (MTT's student rate) does not move either.
            descent.objective.restore({})
            sums = [total + (0.0 if g is None else rms(g)) for total, g in zip(sums, gradients)]
    rates = []
    for value, rate, need, total in zip((z, c), given, needed, sums):
        rates.append(_settle(config.move, value, total / ITERATIONS, config.optimizer) if need else rate or 0.0)
    return Rates(*rates)


def rms(value: Tensor) -> float:
    """Root of the mean square."""
    return float(value.double().square().mean().sqrt())


def _settle(move: float, value: Tensor, gradient: float, optimizer: str) -> float:
    size = move * rms(value)
    if optimizer == "adam":
        return rounded(size)
    if not math.isfinite(gradient) or gradient == 0:
        raise UserError(
            f"no usable gradient arrives (RMS {gradient:g}): give --lr-latent and --lr-cond, or another prior"
        )
    return rounded(size / gradient)


def rounded(value: float) -> float:
    """`value` with three significant digits."""
    return float(f"{value:.{DIGITS}g}")
