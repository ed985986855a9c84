"""Units whose images are shared out: the ranks of one process group compute each of them together.

A unit of LD3M with MTT holds all classes, so more workers cannot help by taking other units. Here each rank generates
its chunks of the images and takes their gradients (`raydd.distill.ld3m.shares`); rank 0 saves and commits. A rank that
dies restarts the group, which goes on from what rank 0 saved last.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from raydd.errors import UserError
from raydd.pipelines.job import Job
from raydd.runtime.work import Context, Resources, Unit


@dataclasses.dataclass(frozen=True)
class SharedUnit:
    """A unit as a process group runs it. It commits itself, on rank 0."""

    unit: Unit

    @property
    def name(self) -> str:
        return self.unit.name

    def is_done(self) -> bool:
        return self.unit.is_done()

    def train(self, device: str, rank: int, world: int) -> None:
        """Compute this rank's part. Numbers that are not finite raise `UserError`: another try meets them again."""
        try:
            self.unit.run(Context(device, rank=rank, world=world))
        except FloatingPointError as error:
            raise UserError(str(error)) from error

    def commit(self, result: Any) -> None:
        """Nothing is left to commit."""


def check_together(ddp: int, methods: Sequence[tuple[Any, Job]], resources: Resources) -> None:
    """Raise `UserError` where `ddp` workers could not compute units of these methods together.

    A method that can has `chunks(job)`: how many workers would find something to do.
    """
    if ddp < 1:
        raise UserError(f"--ddp {ddp}: must be at least 1")
    if ddp == 1:
        return
    if resources.executor != "ray":
        raise UserError(f"--ddp {ddp} needs --executor ray")
    for method, job in methods:
        chunks = method.chunks(job) if hasattr(method, "chunks") else 1
        if chunks == 1:
            raise UserError(f"--ddp {ddp}: {method.name} makes its units alone; use --workers {ddp}")
        if chunks < ddp:
            raise UserError(
                f"--ddp {ddp}: the images make {chunks} chunks, one for each worker at most; use --ddp {chunks}, or a "
                "smaller --chunk"
            )


def run_together(units: Sequence[Unit], ddp: int, resources: Resources, storage: str) -> None:
    """Compute units one after another, each by a group of `ddp` workers."""
    from raydd.runtime.ray_ddp import train_together

    for unit in units:
        if not unit.is_done():
            train_together(SharedUnit(unit), ddp, resources, storage, "classes")
