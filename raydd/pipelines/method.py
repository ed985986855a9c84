"""What a method brings to the pipelines: how it is named, checked, scored and built, class by class or in packs."""

from typing import Any, Protocol

from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.labels import LabelSwitches
from raydd.pipelines.score import Scoring
from raydd.runtime.checkpoints import UnitWork
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run


class Method(Protocol):
    """What `distill` needs of a method. `output` holds its label form, label teacher and codec.

    `cost` orders classes, longest first, in any unit.
    `build` makes one class on `work.device`, from the class's rows of the score table in `tables` (None without one);
    `teacher` labels, and is None where nothing is stored. One that takes minutes keeps its half-done state in `work`.
    """

    name: str
    config: Any

    @property
    def output(self) -> LabelSwitches: ...

    def factor(self, size: int) -> int: ...

    def check(self, job: Job) -> None: ...

    def cost(self, job: Job, label: int) -> float: ...

    def scoring(self, job: Job) -> Scoring | None: ...

    def build(
        self, job: Job, label: int, tables: Run | None, teacher: Teacher | None, work: UnitWork
    ) -> list[DistilledImage]: ...


class PackMethod(Method, Protocol):
    """A method that makes several classes at once, because they are coupled or too small alone.

    `packs` cuts all classes of the job, by its configuration only: never by workers, or by what is asked for.
    `build_pack` makes all of `labels`; what it writes beside the images is of the `wanted` among them alone.
    """

    def packs(self, job: Job) -> list[tuple[int, ...]]: ...

    def build_pack(
        self,
        job: Job,
        labels: tuple[int, ...],
        wanted: tuple[int, ...],
        tables: Run | None,
        teacher: Teacher | None,
        work: UnitWork,
    ) -> list[list[DistilledImage]]: ...


def packs_of(method: Method, job: Job) -> list[tuple[int, ...]]:
    """The classes of the job in the packs that the method makes them in; one by one where it makes none."""
    return method.packs(job) if hasattr(method, "packs") else [(i,) for i in range(len(job.classes))]
