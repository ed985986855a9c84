"""Scoring a small source through the pipeline, by either executor."""

from pathlib import Path

import pyarrow as pa

from raydd.pipelines import score as scoring
from raydd.pipelines.request import DistillOptions, open_job
from raydd.runtime.work import Resources
from raydd.score.table import SCORES, ScoreConfig
from raydd.store import scores
from raydd.store.run import Run


def score_source(data: str, teacher: str, out: Path, executor: str, names=SCORES, workers=None) -> Run:
    """Score `data` into `out`; returns the run."""
    job = open_job(DistillOptions(data=data, out=str(out), teacher=teacher))
    table = scoring.open_table(job, scoring.feature_scoring(job, ScoreConfig(scores=tuple(names))), shared=None)
    scoring.fill_tables([table], Resources(executor=executor, workers=workers))
    return table.run


def all_rows(run: Run, classes: int = 4) -> list[pa.Table | None]:
    """The score rows of every class."""
    return [scores.read_label(run, label) for label in range(classes)]
