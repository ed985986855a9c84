"""The sampling loop whose injected noise is optimized (spec section 3.4), shared by both forms of noise optimization.

    x <- start
    for i = T-1 ... 0:   mu, s <- prior's step;   eps <- minimize J(eps) from a keyed draw;   x <- mu + s * eps

The loop stops for its caller after every step: what it hands over is all that is needed to go on from there, and going
on gives the same bits. A step is redone rather than saved in its middle. All K samples are optimized together, but the
denoiser may see them in batches of any size.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.objective import norm_gap
from raydd.distill.dsco.optimize import minimize
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prediction, Prior, Schedule
from raydd.models.prior.step import posterior


@dataclasses.dataclass(frozen=True)
class Task:
    """The images of one class that are made together: K of them, in chunk `chunk` of the class.

    `class_name` enters every random key, so that a class's images do not depend on which others there are. `label` is
    the prior's label of the class, None for an unconditional prior. `batch` is how many the denoiser sees at once.
    """

    class_name: str
    label: int | None
    count: int
    seed: int
    chunk: int = 0
    batch: int = 256

    def key(self, *parts: object) -> tuple:
        """Key of a draw that belongs to these images."""
        return (self.seed, self.class_name, self.chunk, *parts)


@dataclasses.dataclass(frozen=True)
class State:
    """Between two steps: the next step's index (-1: finished), its sample x fp32 [K, Ch, H, W], one dict per step."""

    next_i: int
    x: Tensor
    log: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """Clean latents fp32 [K, Ch, H, W] for `Prior.decode`, and the log: per step the loss before and after, the mean
    of | ||eps_j|| - sqrt(D) |, iterations, seconds."""

    latents: Tensor
    log: list[dict[str, Any]]


class StepObjective(Protocol):
    """What is minimized at one step: called, it gives the loss to watch and the gradient to follow."""

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]: ...

    def loss(self, noise: Tensor) -> Tensor: ...


def chunks(ipc: int, limit: int) -> list[int]:
    """`ipc` as the fewest near-equal parts of at most `limit`, larger ones first."""
    parts = -(-ipc // limit)
    return [ipc // parts + (part < ipc % parts) for part in range(parts)]


def check_noise(schedule: Schedule, eta: float) -> None:
    """Raise `UserError` where no step would inject noise."""
    none = [_injected(schedule, i) == 0 for i in range(1, len(schedule))]
    if eta == 0 or all(none):
        raise UserError(f"--eta {eta}, {len(schedule)} steps: no step injects noise, so there is nothing to optimize")


def _injected(schedule: Schedule, i: int) -> float:
    """Variance that step i would inject at eta 1."""
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(i), schedule.level(i - 1)
    return sigma_next**2 * max(0.0, 1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2)


def predict(
    prior: Prior, x: Tensor, schedule: Schedule, i: int, label: int | None, guidance: float, batch: int
) -> Prediction:
    """`Prior.denoise` without gradients in batches of at most `batch`, all of one label."""
    parts = []
    with torch.no_grad():
        for part in x.split(batch):
            labels = None if label is None else torch.full((len(part),), label, device=x.device)
            parts.append(prior.denoise(part, schedule, i, labels, guidance))
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("clean", "noise"))
    variance = None if parts[0].variance is None else torch.cat([p.variance for p in parts])
    return Prediction(*joined, variance)


def descend(
    prior: Prior,
    schedule: Schedule,
    state: State,
    task: Task,
    config: DscoConfig,
    objective_at: Callable[[int, Tensor, Tensor], StepObjective],
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """Run the steps that `state` has before it; `objective_at(i, mean, std)` makes the objective of step i.

    `on_step` is called with the new state after every step; what it raises ends the loop. Raises `FloatingPointError`
    that names class and step where the prior or the optimization leaves the finite numbers.
    """
    while state.next_i >= 0:
        i, began = state.next_i, time.perf_counter()
        prediction = predict(prior, state.x, schedule, i, task.label, config.guidance, task.batch)
        mean, std = posterior(prediction, schedule, i, config.eta)
        check_finite(mean, task, i, "the prior's prediction")
        facts: dict[str, Any] = {"step": i}
        if i == 0 or float(std.max()) == 0:
            x = mean
        else:
            noise = prior.draw(task.count, torch_rng(*task.key("step", i)))
            x, more = _optimize(objective_at(i, mean, std), mean, std, noise, config)
            facts |= more
        check_finite(x, task, i, "the optimized sample")
        facts["seconds"] = round(time.perf_counter() - began, 4)
        state = State(i - 1, x, [*state.log, facts])
        if on_step:
            on_step(state)
    return Result(state.x, state.log)


def _optimize(
    objective: StepObjective, mean: Tensor, std: Tensor, noise: Tensor, config: DscoConfig
) -> tuple[Tensor, dict[str, Any]]:
    before = float(objective.loss(noise))
    noise, losses = minimize(objective, noise, config)
    after = float(objective.loss(noise))
    deviation = float(norm_gap(noise).abs().mean())
    return mean + std * noise, dict(before=before, after=after, norm=deviation, iterations=len(losses))


def check_finite(x: Tensor, task: Task, i: int, what: str) -> None:
    """Raise `FloatingPointError` that names class and step if `x` holds NaN or infinity."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(f"class {task.class_name!r}, step {i}: {what} is not finite")
