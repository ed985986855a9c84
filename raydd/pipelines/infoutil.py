"""InfoUtil and RDED from source to distilled set: score candidates in one pass, then build class by class."""

import dataclasses
import functools

from raydd.distill.candidates import candidate_count, candidates, check_counts
from raydd.distill.infoutil import build
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.distill.infoutil.scorer import CropScorer, check_native
from raydd.errors import UserError
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.score import Scoring, identity, key_set
from raydd.runtime.checkpoints import UnitWork
from raydd.store import scores
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run


@dataclasses.dataclass(frozen=True)
class InfoUtil:
    """The method for `pipelines.distill`; RDED and the crop controls are other configurations of it."""

    name: str
    config: InfoUtilConfig

    @property
    def output(self) -> SelectConfig:
        return self.config.select

    def factor(self, size: int) -> int:
        return self.config.tile_factor(size)

    def check(self, job: Job) -> None:
        """Raise `UserError` for switches that do not fit the job."""
        self.config.check(job.size)
        check_counts(job.counts(), job.ipc, self.factor(job.size) ** 2)
        if job.teacher is None:
            raise UserError(f"{self.name} needs a teacher: add --teacher DIR, or train one with 'raydd train-teacher'")
        if self.config.crop.score_input == "native":
            check_native(job.teacher.load(), job.size // self.factor(job.size))

    def cost(self, job: Job, label: int) -> float:
        return float(job.ipc)

    def scoring(self, job: Job) -> Scoring:
        """Crops and their scores for the candidates of every class."""
        factor = self.factor(job.size)
        count = candidate_count(self.config.select.mipc, factor * factor, job.ipc)
        keys = [key for i, name in enumerate(job.classes) for key in candidates(job.keys(i), name, count, job.seed)]
        settled = self.config.at(job.size)
        config = identity(job, "crops", settled.crop, keys, factor=factor, seed=job.seed)
        return Scoring(config, key_set(job, keys), functools.partial(_load_scorer, job, settled, factor))

    def build(
        self, job: Job, label: int, tables: Run | None, teacher: Teacher | None, work: UnitWork
    ) -> list[DistilledImage]:
        """The distilled images of one class from its committed scores."""
        table, config = scores.read_label(tables, label), self.config.at(job.size)
        return build.build_class(
            job.source, table, config, label=label, ipc=job.ipc, size=job.size, seed=job.seed, teacher=teacher
        )


def _load_scorer(job: Job, config: InfoUtilConfig, factor: int, device: str) -> CropScorer:
    return CropScorer(
        job.teacher.load(device),
        config.crop,
        classes=job.classes,
        size=job.size,
        factor=factor,
        seed=job.seed,
        batch=job.batch,
        precision=job.precision,
        device=device,
    )
