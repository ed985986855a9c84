"""One class, or a pack of classes that are made together, as a unit of work: build, and commit class by class."""

import dataclasses
import time

from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job, TeacherSpec
from raydd.pipelines.method import Method
from raydd.runtime.checkpoints import UnitWork, open_work
from raydd.runtime.work import Context
from raydd.store import distilled, events
from raydd.store.distilled import DistilledImage
from raydd.store.progress import start_unit
from raydd.store.run import Run


@dataclasses.dataclass(frozen=True)
class PackUnit:
    """The classes `labels`, computed together; those that are `wanted` are committed, each at once."""

    job: Job
    method: Method
    labels: tuple[int, ...]
    wanted: tuple[int, ...]
    config_hash: str
    tables: Run | None
    label_teacher: TeacherSpec | None

    @property
    def key(self) -> str:
        """The class, or the first of several and how many more."""
        more = f"+{len(self.labels) - 1}" if len(self.labels) > 1 else ""
        return self.job.classes[self.labels[0]] + more

    @property
    def name(self) -> str:
        return f"{self.job.out}/{self.key}"

    @property
    def cost(self) -> float:
        return sum(self.method.cost(self.job, label) for label in self.labels)

    def left(self) -> list[int]:
        """The wanted classes that are not committed."""
        return [i for i in self.wanted if not distilled.is_done(Run(self.job.out), i, self.config_hash)]

    def is_done(self) -> bool:
        return not self.left()

    def run(self, context: Context) -> None:
        start = time.monotonic()
        run, work = Run(self.job.out), self.work(context)
        left = self.left()
        if not left:
            return
        if context.rank == 0:
            start_unit(run, self.key, [self.job.classes[label] for label in left])
        teacher = self.label_teacher.load(context.device) if self.label_teacher else None
        made = self._build(tuple(left), teacher, work)
        if context.rank:
            return
        seconds = round((time.monotonic() - start) / len(self.labels), 3)
        for label in left:
            images, name = made[label], self.job.classes[label]
            distilled.commit_class(
                run,
                label,
                self.job.classes,
                images,
                method=self.method.name,
                config_hash=self.config_hash,
                seed=self.job.seed,
                seconds=seconds,
            )
            events.append(run, "class_committed", name=name, images=len(images), seconds=seconds)
        work.delete_state()

    def _build(
        self, wanted: tuple[int, ...], teacher: Teacher | None, work: UnitWork
    ) -> dict[int, list[DistilledImage]]:
        if hasattr(self.method, "build_pack"):
            made = self.method.build_pack(self.job, self.labels, wanted, self.tables, teacher, work)
            return dict(zip(self.labels, made, strict=True))
        (label,) = self.labels
        return {label: self.method.build(self.job, label, self.tables, teacher, work)}

    def work(self, context: Context) -> UnitWork:
        """Where these classes keep their half-done state."""
        return open_work(Run(self.job.out), self.key, self.config_hash, context)
