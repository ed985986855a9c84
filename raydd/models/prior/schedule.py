"""From a diffusers scheduler's config to the levels of a sampling run, and from a network's output to (clean, noise).

Only the config is read: the tables are rebuilt in float64, and a diffusers scheduler never steps. Variance-preserving
schedules have alpha = sqrt(abar), sigma = sqrt(1 - abar); rectified flow (FlowMatchEulerDiscreteScheduler) has
alpha = 1 - t, sigma = t. The default timesteps, round(linspace(0, N - 1, steps)), are those of the released setting
(dsco.md, section 3.1), whatever spacing the config names. Refused in one line: variance-exploding schedules, dynamic
thresholding and dynamic shifting.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydd.errors import UserError, choose
from raydd.models.prior.base import Schedule

SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
BETA_CAP = 0.999  # of squaredcos_cap_v2


@dataclass(frozen=True)
class NoiseTable:
    """All levels that a denoiser was trained at, cleanest first.

    times, alphas, sigmas: float64 [N], what the network is told and x = alpha * clean + sigma * noise. prediction: one
    of PREDICTIONS. clip: bound of the clean image, or None. offset: first timestep of `leading` spacing. final: the
    (alpha, sigma) that diffusers' DDIM ends at, which is not always the clean level.
    """

    times: np.ndarray = field(repr=False)
    alphas: np.ndarray = field(repr=False)
    sigmas: np.ndarray = field(repr=False)
    prediction: str
    clip: float | None = None
    offset: int = 0
    final: tuple[float, float] = (1.0, 0.0)

    def __len__(self) -> int:
        return len(self.times)

    def schedule(self, steps: int, spacing: str = "linspace") -> Schedule:
        """The levels of a run of `steps` steps; `UserError` for more steps than there are levels, or less than one."""
        if not 1 <= steps <= len(self):
            raise UserError(f"{steps} sampling steps: this prior has {len(self)} levels; choose 1 to {len(self)}")
        rows = spaced(len(self), steps, spacing, self.offset)
        # Integers where the table holds integers: embeddings of timesteps are looked up by some networks.
        times = torch.from_numpy(self.times[rows])
        whole = torch.equal(times, times.round())
        return Schedule(
            times.round().long() if whole else times.float(),
            torch.from_numpy(self.alphas[rows]),
            torch.from_numpy(self.sigmas[rows]),
            final=self.final,
        )

    def split(
        self, output: Tensor, x: Tensor, alpha: float, sigma: float, *, clip: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(clean, noise) of a network's output at x = alpha * clean + sigma * noise, with the clip applied if asked.

        In x's dtype, fp32 or fp64. After clipping the noise is recomputed, so that the two always add up to x.
        """
        output = output.to(x.dtype)
        if self.prediction == "epsilon":
            noise, clean = output, (x - sigma * output) / alpha
        elif self.prediction == "sample":
            noise, clean = (x - alpha * output) / sigma, output
        elif self.prediction == "v_prediction":
            noise, clean = alpha * output + sigma * x, alpha * x - sigma * output
        else:
            noise, clean = x + alpha * output, x - sigma * output
        if clip and self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
            noise = (x - alpha * clean) / sigma
        return clean, noise


def read_table(config: Mapping[str, Any], *, pixels: bool) -> NoiseTable:
    """The levels that a scheduler's config describes; `pixels` tells whether its clipping of clean images applies.

    Clipping is ignored for latents, which have no bounds (ours). Raises `UserError` for what is not served here.
    """
    name = config.get("_class_name", "the scheduler")
    prediction = choose("prediction type", _prediction(config), PREDICTIONS)
    if config.get("thresholding"):
        raise UserError(f"{name} asks for dynamic thresholding, which depends on the batch: set thresholding to false")
    if prediction == "flow_prediction":
        return _flow(config, name)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise UserError(
            f"the prior's scheduler is {name}, which has no beta schedule: raydd samples variance-preserving schedules "
            "and FlowMatchEulerDiscreteScheduler"
        )
    kept = cumulative(betas_of(config), zero_terminal=bool(config.get("rescale_betas_zero_snr")))
    if kept[-1] == 0 and prediction == "epsilon":
        raise UserError(f"{name} ends in pure noise, where epsilon says nothing of the image: it needs v_prediction")
    clip = float(config.get("clip_sample_range", 1.0)) if pixels and config.get("clip_sample") else None
    times = np.arange(len(kept), dtype=np.float64)
    last = 1.0 if config.get("set_alpha_to_one", True) else float(kept[0])
    return NoiseTable(
        times,
        np.sqrt(kept),
        np.sqrt(1 - kept),
        prediction,
        clip,
        int(config.get("steps_offset", 0)),
        final=(math.sqrt(last), math.sqrt(1 - last)),
    )


def betas_of(config: Mapping[str, Any]) -> np.ndarray:
    """Noise variances float64 [N] of a scheduler's config."""
    if (betas := config.get("trained_betas")) is not None:
        return np.asarray(betas, dtype=np.float64)
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    match kind := config["beta_schedule"]:
        case "linear":
            return np.linspace(start, end, count)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, count) ** 2
        case "squaredcos_cap_v2":
            bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
            return np.array([min(1 - b / a, BETA_CAP) for a, b in itertools.pairwise(bar)])
    choices = ("linear", "scaled_linear", "squaredcos_cap_v2")
    raise UserError(f"unknown beta schedule {kind!r} of the prior: raydd knows {', '.join(choices)}")


def cumulative(betas: np.ndarray, *, zero_terminal: bool = False) -> np.ndarray:
    """Products abar of 1 - beta, float64 [N]; with `zero_terminal` rescaled to end at 0 (arXiv 2305.08891, alg. 1)."""
    kept = np.cumprod(1 - betas)
    if not zero_terminal:
        return kept
    root = np.sqrt(kept)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def spaced(count: int, steps: int, spacing: str, offset: int = 0) -> np.ndarray:
    """Rows [steps] of a table of `count` levels, cleanest first; a single step starts from the noisiest level."""
    choose("spacing", spacing, SPACINGS)
    if spacing == "leading":
        return np.minimum(np.arange(steps) * (count // steps) + offset, count - 1)
    if spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps))[:steps][::-1].astype(np.int64) - 1
    if steps == 1:
        return np.array([count - 1])
    return np.round(np.linspace(0, count - 1, steps)).astype(np.int64)


def _prediction(config: Mapping[str, Any]) -> str:
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        return "flow_prediction"
    return config.get("prediction_type", "epsilon")


def _flow(config: Mapping[str, Any], name: str) -> NoiseTable:
    if config.get("use_dynamic_shifting"):
        raise UserError(
            f"{name} shifts its levels by the image size, which raydd does not: set use_dynamic_shifting off"
        )
    count, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift") or 1.0)
    t = np.arange(1, count + 1, dtype=np.float64) / count
    t = shift * t / (1 + (shift - 1) * t)
    return NoiseTable(t * count, 1 - t, t, "flow_prediction")
