"""LD3M's objective along expert trajectories (MTT, arXiv 2203.11932): all classes of a group together, one student.

Each iteration draws an expert and an epoch to start from; the student takes `student_steps` steps on the synthetic
images and should end where the expert was `expert_epochs` later. The student's rate alpha is learned beside the images
(ld3m.md, section 4.3): its value and its momentum are all that goes from one iteration to the next.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.objective import HELDOUT
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.trajectory import draw_steps, match_loss, match_trajectory
from raydd.keyed import numpy_rng
from raydd.models.flat import FlatNet

LEAST_RATE = 1e-6
# Experts that are kept in memory: one is a few megabytes, and each is met often.
KEPT = 64

Snapshots = Callable[[int], Tensor]


class TrajectoryMatching:
    """The loss over a group's images. net: the experts' network; load(i): expert i's snapshots by epoch; count: of
    experts. The labels of the pack are those that the experts were trained with."""

    def __init__(
        self, pack: Pack, net: FlatNet, load: Callable[[int], Snapshots], count: int, config: Ld3mConfig, device: str
    ):
        self.pack, self.net, self.count, self.config, self.device = pack, net, count, config, device
        self.load = functools.lru_cache(KEPT)(load)
        self.labels = pack.each(pack.labels).to(device)
        self.restore({})

    def __call__(self, iteration: int, synthetic: Tensor) -> tuple[float, Tensor]:
        matched = match_trajectory(*self._task(synthetic, "iteration", iteration), self.config.mtt_gradient)
        self.velocity = self.config.momentum * self.velocity + matched.alpha
        self.alpha = (self.alpha - self.config.student_lr_lr * self.velocity).clamp(min=LEAST_RATE)
        return float(matched.loss), matched.images

    def heldout(self, synthetic: Tensor) -> float | None:
        if not self.config.heldout:
            return None
        losses = [float(match_loss(*self._task(synthetic, HELDOUT, draw))) for draw in range(self.config.heldout)]
        return sum(losses) / len(losses)

    def state(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha, "alpha-velocity": self.velocity}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.alpha = state.get("alpha", torch.tensor(self.config.student_lr)).to(self.device)
        self.velocity = state.get("alpha-velocity", torch.zeros(())).to(self.device)

    def _task(self, synthetic: Tensor, *key: object) -> tuple[Any, ...]:
        """What `match_loss` takes: the network, where an expert was and came to, images, and a student's steps."""
        key = (self.pack.seed, "mtt", *self.pack.names, *key)
        expert, epoch = numpy_rng(*key, "expert").random(2)
        snapshots = self.load(int(expert * self.count))
        start = int(epoch * self.config.max_start)
        ends = (snapshots(at).to(self.device) for at in (start, start + self.config.expert_epochs))
        steps = draw_steps(*key, count=len(synthetic), batch=self.config.student_batch, steps=self.config.student_steps)
        return self.net, *ends, synthetic, self.labels, self.alpha, steps
