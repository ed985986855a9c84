"""Mid-unit checkpoints: when a unit saves its half-done state, and the small object through which it does so.

A unit asks `due()` between steps: yes, when `every_s` seconds have passed since the last save; on a preemption notice
at once, and then every few seconds until the worker is taken away (runtime.md, section 5). A unit never returns early
because of a notice: returning would look like success.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from raydd.runtime.work import Context
from raydd.store import events, state
from raydd.store.run import Run
from raydd.store.state import State

EVERY_S = 30.0
NOTICE_S = 3.0


class SaveClock:
    """Tells when to save: every `every_s` seconds; once `deadline()` gives a number, at once and every `notice_s`."""

    def __init__(
        self,
        every_s: float = EVERY_S,
        deadline: Callable[[], float | None] = lambda: None,
        *,
        notice_s: float = NOTICE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every_s, self.deadline, self.notice_s, self.now = every_s, deadline, notice_s, now
        self.last = now()
        self.noticed = False

    def due(self) -> bool:
        """Whether the state should be saved now."""
        waited = self.now() - self.last
        if self.deadline() is None:
            return waited >= self.every_s
        first, self.noticed = not self.noticed, True
        return first or waited >= min(self.notice_s, self.every_s)

    def saved(self) -> None:
        """Start to wait again; called when a save has ended."""
        self.last = self.now()


@dataclasses.dataclass(frozen=True)
class UnitWork:
    """What the computation of one unit is given: where to compute, how to talk, and its half-done state.

    A unit that takes minutes calls `load_state` first and, between steps, `save_state` whenever `due()`; a short one
    ignores them. Whoever commits the unit calls `delete_state`.
    """

    run: Run
    unit: str
    config_hash: str
    context: Context
    clock: SaveClock

    @property
    def device(self) -> str:
        return self.context.device

    def say(self, line: str) -> None:
        """Print one line where the user looks."""
        self.context.say(f"{self.unit}: {line}")

    def due(self) -> bool:
        """Whether to save now; a preemption notice is logged when it is first seen."""
        known, due = self.clock.noticed, self.clock.due()
        if self.clock.noticed and not known:
            events.append(self.run, "unit_preempted", name=self.unit, seconds_left=self.context.deadline())
        return due

    def load_state(self) -> State | None:
        """What an earlier attempt at exactly this unit saved last, or None."""
        found = state.load(self.run, self.unit, self.config_hash)
        if found is not None and self.context.rank == 0:
            events.append(self.run, "unit_resumed", name=self.unit, step=found.step)
        return found

    def save_state(self, tensors: Mapping[str, Tensor], step: int, facts: Mapping[str, Any] | None = None) -> None:
        """Replace the saved state; `step` is the one to go on with, and grows; `facts` are plain JSON values."""
        state.save(self.run, self.unit, tensors, step=step, config_hash=self.config_hash, facts=facts or {})
        self.clock.saved()
        self.context.advanced(step)

    def delete_state(self) -> None:
        """Forget the state; nothing to do where there is none."""
        state.delete(self.run, self.unit)


def open_work(run: Run, unit: str, config_hash: str, context: Context, every_s: float = EVERY_S) -> UnitWork:
    """The work of one unit of `run` on this worker."""
    return UnitWork(run, unit, config_hash, context, SaveClock(every_s, context.deadline))
