"""Learning-rate factors: pure functions of (epoch, epochs) that multiply a base rate.

The schedules of evaluation.md section 2: `step` (IDC, Minimax, DsCo), `cosine` with a stretch (1 ends at 0, as FKD; 2
is the half-cosine of RDED, which ends at half the rate; RD3's zeta is the stretch), `warmup_cosine` (GLaD), `constant`.

A schedule is read at a *reference* epoch. When the number of optimizer steps is overridden, step i stands for epoch
floor(i * epochs / steps), so runs of different set sizes but equal steps see the same rate at the same step.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "step", "cosine", "warmup_cosine"]


@dataclass(frozen=True)
class Schedule:
    """A schedule and its parameters; those of other kinds are ignored.

    `milestones` and `warmup` are fractions of the run; `gamma` multiplies the rate at each milestone; `start` is the
    factor at which the warm-up begins; `stretch` is the length of the cosine's half period in runs.
    """

    kind: Kind = "constant"
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    gamma: float = 0.2
    stretch: float = 1.0
    warmup: float = 0.5
    start: float = 1e-7

    def factor(self, epoch: int, epochs: int) -> float:
        """Multiplier of the base rate in `epoch` (0 to `epochs` - 1)."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return step(epoch, epochs, self.milestones, self.gamma)
        if self.kind == "cosine":
            return cosine(epoch, epochs, self.stretch)
        assert self.kind == "warmup_cosine", self.kind
        return warmup_cosine(epoch, epochs, self.warmup, self.start)


def step(epoch: int, epochs: int, milestones: tuple[float, ...], gamma: float) -> float:
    """gamma to the number of milestones passed; a milestone m lies at epoch floor(m * epochs)."""
    # The small term keeps 2/3 * 3000 at 2000 and not at 1999.
    return gamma ** sum(epoch >= math.floor(m * epochs + 1e-9) for m in milestones)


def cosine(epoch: float, epochs: float, stretch: float = 1.0) -> float:
    """(1 + cos(pi * epoch / (stretch * epochs))) / 2: from 1 to 0 for stretch 1, from 1 to 1/2 for stretch 2."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (stretch * epochs)))


def warmup_cosine(epoch: int, epochs: int, warmup: float, start: float) -> float:
    """Linear from `start` to 1 over the first `warmup` of the run, then a cosine to 0 over the rest."""
    rise = warmup * epochs
    if epoch < rise:
        return start + (1 - start) * epoch / rise
    return cosine(epoch - rise, epochs - rise)


def reference_epoch(step: int, steps: int, epochs: int) -> int:
    """The reference epoch that optimizer step `step` (0 to `steps` - 1) of a run of `steps` belongs to."""
    return step * epochs // steps
