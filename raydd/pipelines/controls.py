"""The controls from source to distilled set: random, k-means and herding."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raydd.distill import controls
from raydd.distill.candidates import candidates, check_counts
from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.score import Scoring, feature_scoring
from raydd.runtime.checkpoints import UnitWork
from raydd.score.table import ScoreConfig
from raydd.store import scores
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run

# Random keys are drawn before anything is decoded: some spares stand in for broken images.
SPARES = 16


@dataclasses.dataclass(frozen=True)
class Control:
    """A method for `pipelines.distill`."""

    name: str
    config: ControlConfig

    @property
    def output(self) -> ControlConfig:
        return self.config

    def factor(self, size: int) -> int:
        return 1

    def check(self, job: Job) -> None:
        """Raise `UserError` for options that do not fit the job."""
        self.config.check()
        check_counts(job.counts(), job.ipc, 1)
        if self.name != "random" and self.config.mipc is not None and self.config.mipc < job.ipc:
            raise UserError(f"--mipc {self.config.mipc}: fewer candidates than --ipc {job.ipc}; raise it")

    def cost(self, job: Job, label: int) -> float:
        return float(job.ipc)

    def scoring(self, job: Job) -> Scoring | None:
        """Teacher features of the candidates; random needs none."""
        if self.name == "random":
            return None
        return feature_scoring(job, ScoreConfig(scores=("features",)), self._candidates(job))

    def build(
        self, job: Job, label: int, tables: Run | None, teacher: Teacher | None, work: UnitWork
    ) -> list[DistilledImage]:
        """The chosen originals of one class."""
        name = job.classes[label]
        if self.name == "random":
            keys = candidates(job.keys(label), name, job.ipc + SPARES, job.seed)
        else:
            keys = self._by_features(scores.read_label(tables, label), name, job)
        return controls.build_class(job.source, keys, self.config, ipc=job.ipc, size=job.size, teacher=teacher)

    def _candidates(self, job: Job) -> list[str] | None:
        if self.config.mipc is None:
            return None
        by_class = enumerate(job.classes)
        return [key for i, name in by_class for key in candidates(job.keys(i), name, self.config.mipc, job.seed)]

    def _by_features(self, table: pa.Table | None, name: str, job: Job) -> Sequence[str]:
        if table is None or table.num_rows < job.ipc:
            raise UserError(f"class {name!r} has fewer than {job.ipc} readable images: use a lower --ipc")
        column = table["features"].combine_chunks()
        features = np.asarray(column.flatten()).reshape(len(column), -1).astype(np.float32)
        keys = table["key"].to_pylist()
        return controls.choose_by_features(self.name, keys, features, name, job.ipc, job.seed)
