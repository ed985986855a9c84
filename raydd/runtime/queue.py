"""The queue of units that the ranks of a worker group share. A plain class: Ray makes an actor of it.

A unit is done when its own files say so, and ranks ask those before they run it; so the queue holds names only, and may
be lost and rebuilt at any time. It is told who holds which unit, so that after a crash only the unit whose own process
died is charged with an attempt: its neighbors, which the restart of the group cut short, are innocent. Several groups
may share it, each in a slot of its own: a new group voids the leases of the one before it in its slot. Attempts count
crashes since the unit last saved a step further than ever before: a long unit may outlive many crashes, while one that
dies at the same place each time is given up.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raydd.runtime.work import Failure

MAX_ATTEMPTS = 3


class News(NamedTuple):
    """What happened since the last call: counts so far, events as (unit, event, facts), and lines to print."""

    finished: int
    failed: int
    events: list[tuple[str, str, dict[str, Any]]]
    lines: list[str]


class UnitQueue:
    """Hands out units by name, longest first, and counts what became of them.

    `died(worker)` tells whether a worker's process ended by itself (True), by others (False), or not at all or unknown
    (None, which counts as a crash: a unit that cannot be judged must not be tried for ever).
    """

    def __init__(self, costs: Mapping[str, float], died: Callable[[str], bool | None]) -> None:
        self.costs, self.died = dict(costs), died
        self.failures: dict[str, Failure] = {}
        self.finished: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        # Per unit, the slot and the worker that hold it.
        self.leases: dict[str, tuple[int, str]] = {}
        self.todo: list[str] = []
        self.groups: dict[int, str] = {}
        self.old_groups: set[str] = set()
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.lines: list[str] = []

    def take(self, group: str, worker: str, slot: int = 0) -> str | None:
        """The next unit for a worker of `group`, or None. A new group voids the leases of the last one in its slot."""
        if group != self.groups.get(slot):
            if group in self.old_groups:
                return None  # a worker of a former group, cut off but alive
            self._regroup(group, slot)
        if not self.todo:
            return None
        name = self.todo.pop()
        self.leases[name] = (slot, worker)
        return name

    def _regroup(self, group: str, slot: int) -> None:
        void = {name: worker for name, (holder, worker) in self.leases.items() if holder == slot}
        for name, worker in void.items():
            del self.leases[name]
            self._judge(name, worker)
        if slot in self.groups:
            self.old_groups.add(self.groups[slot])
        self.groups[slot] = group
        left = self.costs.keys() - self.finished - self.failures.keys() - self.leases.keys()
        # Taken from the end: the longest first, and last those that crashed, which may take the group down again.
        self.todo = sorted(left, key=lambda name: (-self.attempts[name], self.costs[name], name))

    def _judge(self, name: str, worker: str) -> None:
        guilty = self.died(worker) is not False
        self.attempts[name] += guilty
        if self.attempts[name] >= MAX_ATTEMPTS:
            self.fail(name, Failure(f"its worker process died {MAX_ATTEMPTS} times"))
        else:
            self.events.append((name, "unit_retried", {"crashed": guilty, "attempts": self.attempts[name]}))

    def advance(self, name: str, step: int) -> None:
        """Note that a unit has saved its state at `step`."""
        if step > self.steps[name]:
            self.steps[name] = step
            self.attempts[name] = 0

    def finish(self, name: str) -> None:
        self.finished.add(name)
        self.leases.pop(name, None)

    def fail(self, name: str, failure: Failure) -> None:
        self.failures[name] = failure
        self.leases.pop(name, None)
        self.events.append((name, "unit_failed", {"reason": failure.reason}))

    def abort(self, failure: Failure) -> None:
        """Fail all that is left, for a reason that every worker would meet again."""
        for name in self.costs.keys() - self.finished - self.failures.keys():
            self.fail(name, failure)
        self.todo = []

    def tell(self, line: str) -> None:
        """Keep a line for the driver to print."""
        self.lines.append(line)

    def progress(self) -> tuple[int, int, int]:
        """Units finished, units given up, and steps saved; it changes whenever a unit gets on."""
        return len(self.finished), len(self.failures), self.steps.total()

    def failed(self) -> dict[str, Failure]:
        return self.failures

    def news(self) -> News:
        """Counts so far, and the events and lines since the last call."""
        events, lines = self.events, self.lines
        self.events, self.lines = [], []
        return News(len(self.finished), len(self.failures), events, lines)
