"""The sampling loop whose injected noise is optimized (spec section 3.4), shared by both forms of noise optimization.

    x <- start
    for i = T-1 ... 0:   mu, s <- prior's step;   eps <- minimize J(eps) from a keyed draw;   x <- mu + s * eps

The loop stops for its caller after every step: what it hands over is all that is needed to go on from there, and going
on gives the same bits. A step is redone rather than saved in its middle. All K samples of a class are optimized
together, but the denoiser may see them in batches of any size. Several classes may share the batches of the denoiser
and of the feature net (a pack); nothing else of one class touches another.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
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
    `wanted`: a class that is in a pack only for the pack's sake may break down. All tasks of a pack have the same
    `count`, `seed`, `chunk` and `batch`.
    """

    class_name: str
    label: int | None
    count: int
    seed: int
    chunk: int = 0
    batch: int = 256
    wanted: bool = True

    def key(self, *parts: object) -> tuple:
        """Key of a draw that belongs to these images."""
        return (self.seed, self.class_name, self.chunk, *parts)


@dataclasses.dataclass(frozen=True)
class State:
    """Between two steps: the next step's index (-1: finished), its samples x fp32 [B * K, Ch, H, W] of B classes, and
    for each class one dict per step."""

    next_i: int
    x: Tensor
    logs: list[list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Result:
    """Clean latents fp32 [B * K, Ch, H, W] for `Prior.decode`, class by class, and the log of each: per step the loss
    before and after, the mean of | ||eps_j|| - sqrt(D) |, iterations, seconds (its share of the pack's)."""

    latents: Tensor
    logs: list[list[dict[str, Any]]]


class StepObjective(Protocol):
    """What is minimized at one step: called, it gives each class's loss [B], to watch, and the gradient to follow."""

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


def draw(prior: Prior, tasks: Sequence[Task], *key: object) -> Tensor:
    """Noise fp32 [B * K, Ch, H, W], every class's from its own key."""
    return torch.cat([prior.draw(task.count, torch_rng(*task.key(*key))) for task in tasks])


def predict(prior: Prior, x: Tensor, schedule: Schedule, i: int, tasks: Sequence[Task], guidance: float) -> Prediction:
    """`Prior.denoise` of the tasks' samples without gradients, in batches of at most `Task.batch`."""
    batch, labels = tasks[0].batch, None
    if tasks[0].label is not None:
        labels = torch.tensor([task.label for task in tasks], device=x.device).repeat_interleave(tasks[0].count)
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), batch):
            some = slice(start, start + batch)
            parts.append(prior.denoise(x[some], schedule, i, None if labels is None else labels[some], guidance))
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("clean", "noise"))
    variance = None if parts[0].variance is None else torch.cat([p.variance for p in parts])
    return Prediction(*joined, variance)


def descend(
    prior: Prior,
    schedule: Schedule,
    state: State,
    tasks: Sequence[Task],
    config: DscoConfig,
    objective_at: Callable[[int, Tensor, Tensor], StepObjective],
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """Run the steps that `state` has before it; `objective_at(i, mean, std)` makes the objective of step i.

    `on_step` is called with the new state after every step; what it raises ends the loop. Raises `FloatingPointError`
    that names class and step where the prior or the optimization of a wanted class leaves the finite numbers.
    """
    while state.next_i >= 0:
        i, began = state.next_i, time.perf_counter()
        prediction = predict(prior, state.x, schedule, i, tasks, config.guidance)
        mean, std = posterior(prediction, schedule, i, config.eta)
        check_finite(mean, tasks, i, "the prior's prediction")
        facts: list[dict[str, Any]] = [{} for _ in tasks]
        if i == 0 or float(std.max()) == 0:
            x = mean
        else:
            noise = draw(prior, tasks, "step", i)
            x, facts = _optimize(objective_at(i, mean, std), mean, std, noise, config, len(tasks))
        check_finite(x, tasks, i, "the optimized sample")
        seconds = round((time.perf_counter() - began) / len(tasks), 4)
        logs = [[*log, {"step": i, **some, "seconds": seconds}] for log, some in zip(state.logs, facts, strict=True)]
        state = State(i - 1, x, logs)
        if on_step:
            on_step(state)
    return Result(state.x, state.logs)


def _optimize(
    objective: StepObjective, mean: Tensor, std: Tensor, noise: Tensor, config: DscoConfig, classes: int
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The sample after the optimization of its noise, and what the log tells of every class."""
    before = objective.loss(noise)
    noise, losses = minimize(objective, noise, config, classes)
    deviation = norm_gap(noise).abs().view(classes, -1).mean(1)
    numbers = {"before": before, "after": objective.loss(noise), "norm": deviation}
    columns = {name: values.tolist() for name, values in numbers.items()}
    return mean + std * noise, [
        {name: column[k] for name, column in columns.items()} | {"iterations": len(losses)} for k in range(classes)
    ]


def check_finite(x: Tensor, tasks: Sequence[Task], i: int, what: str) -> None:
    """Raise `FloatingPointError` that names step and class if samples of a wanted class hold NaN or infinity."""
    finite = torch.isfinite(x.view(len(tasks), -1)).all(1).tolist()
    for task, good in zip(tasks, finite):
        if task.wanted and not good:
            raise FloatingPointError(f"class {task.class_name!r}, step {i}: {what} is not finite")
