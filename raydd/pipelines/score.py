"""Scores of a source into a run, in one resumable pass: `raydd score`, and the first half of every scored method."""

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from raydd.config import content_hash
from raydd.data.source import SourceUnit
from raydd.errors import UserError
from raydd.pipelines.job import Job, check_stage, close_log, is_settled
from raydd.runtime.execute import stream_scores
from raydd.runtime.stream import ScoreStream
from raydd.runtime.work import Resources, Ticker
from raydd.score.table import ScoreConfig, Scorer
from raydd.store import events, filesystem, scores
from raydd.store.holder import hold
from raydd.store.progress import start_work
from raydd.store.run import SCORES, Run

STAGE = "score"
UNIT_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Scoring:
    """A score table to be made: what decides its numbers, which images, and how a worker gets a scorer.

    `size` is the size that images are decoded at if it is not the job's, `folder` the place in the run.
    """

    config: dict[str, Any]
    keys: frozenset[str] | None
    load: Callable[[str], Callable]
    size: int | None = None
    folder: str = SCORES


def feature_scoring(job: Job, config: ScoreConfig, keys: Sequence[str] | None = None) -> Scoring:
    """A table of per-image scores for a job (of all images if `keys` is None)."""
    config.check()
    if job.teacher is None:
        raise UserError(f"scores {', '.join(config.scores)} need a teacher: add --teacher DIR or NAME:pretrained")
    return Scoring(
        config=identity(job, "scores", config, keys),
        keys=key_set(job, keys),
        load=functools.partial(_load_scorer, job, config),
    )


def key_set(job: Job, keys: Sequence[str] | None) -> frozenset[str] | None:
    """The images to score; None stands for all of them, however they were named."""
    return None if keys is None or len(keys) == len(job.source) else frozenset(keys)


def _load_scorer(job: Job, config: ScoreConfig, device: str) -> Scorer:
    return Scorer(job.teacher.load(device), config, batch=job.batch, precision=job.precision, device=device)


def identity(job: Job, kind: str, config: Any, keys: Sequence[str] | None, **more: Any) -> dict[str, Any]:
    """Everything that a score table's numbers depend on."""
    return {
        "kind": kind,
        "source": job.fingerprint,
        "teacher": job.teacher_hash,
        "size": job.size,
        "batch": job.batch,
        "precision": job.precision,
        "keys": None if keys is None else content_hash(sorted(keys)),
        "config": config,
        **more,
    }


@dataclasses.dataclass(frozen=True)
class Table:
    """One score table that a job asks for, and the run that holds it; `force` makes it again."""

    job: Job
    scoring: Scoring
    run: Run
    force: bool = False

    @property
    def size(self) -> int:
        """The size that images are decoded at."""
        return self.scoring.size or self.job.size

    def is_done(self, units: Sequence[SourceUnit]) -> bool:
        """Whether every unit is there and the stage is closed."""
        if self.force or not is_settled(self.run, STAGE, self.scoring.config):
            return False
        return {unit.name for unit in units} <= scores.committed_units(self.run)

    def begin(self) -> None:
        self.run.begin(STAGE, self.scoring.config, seed=self.job.seed, force=self.force)

    def finish(self, images: int, seconds: float) -> list[tuple[str, str]]:
        """Sort the rows by class and close the stage; returns (key, reason) of the images that were dropped."""
        scores.regroup(self.run)
        if self.job.source.mislabeled:
            scores.list_dropped(self.run, "mislabeled", self.job.source.mislabeled)
        dropped = scores.read_dropped(self.run)
        close_log(self.run)
        self.run.end(STAGE, images=images, dropped=len(dropped), seconds=round(seconds, 3))
        return dropped


def open_table(job: Job, scoring: Scoring, *, shared: str | None, force: bool = False) -> Table:
    """The table of a job, checked against what is there; nothing is written.

    `shared` is a folder of tables by configuration, for runs that differ in IPC, direction or labels only; without it
    the table lives in the job's own run.
    """
    uri = filesystem.join(filesystem.absolute(shared), content_hash(scoring.config)) if shared else job.out
    run = Run(uri, scoring.folder)
    check_stage(run, STAGE, scoring.config, force)
    return Table(job, scoring, run, force)


def fill_tables(tables: Sequence[Table], resources: Resources) -> None:
    """Score what is missing of every table. Tables over the same images are made in one pass over them."""
    unique = {table.run.uri: table for table in tables}
    groups = defaultdict(list)
    for table in unique.values():
        groups[table.job.data, table.size, table.scoring.keys].append(table)
    for group in groups.values():
        _fill(group, resources)


def _fill(group: Sequence[Table], resources: Resources) -> None:
    start = time.monotonic()
    units = group[0].job.source.units(UNIT_ROWS, keys=group[0].scoring.keys)
    if group := [table for table in group if not table.is_done(units)]:
        with hold(*(table.run for table in group)):
            _make(group, units, start, resources)


def _make(group: Sequence[Table], units: Sequence[SourceUnit], start: float, resources: Resources) -> None:
    for table in group:
        table.begin()
    committed = [scores.committed_units(table.run) for table in group]
    todo = [unit for unit in units if not all(unit.name in names for names in committed)]
    if todo:
        start_work(group[0].run, STAGE, total=sum(unit.n for unit in units), left=sum(unit.n for unit in todo))
        if len(todo) < len(units):
            events.append(group[0].run, "scoring_resumed", done=len(units) - len(todo), left=len(todo))
        _stream(group, todo, resources)
    for table in group:
        dropped = table.finish(sum(unit.n for unit in units), time.monotonic() - start)
        if dropped:
            key, reason = dropped[0]
            print(f"scores: {len(dropped)} images dropped, first {key!r} ({reason}); the report lists them")


def _stream(group: Sequence[Table], todo: Sequence[SourceUnit], resources: Resources) -> None:
    done, total = 0, sum(unit.n for unit in todo)
    ticker = Ticker("scored images", total)
    log = events.Batch(group[0].run)

    def on_unit(row: dict[str, Any]) -> None:
        nonlocal done
        done += row["images"] + row["dropped"]
        log.append("unit_scored", **{**row, "seconds": round(row["seconds"], 3)})
        ticker.update(done)

    tables = tuple((table.run, table.scoring.load) for table in group)
    try:
        stream_scores(ScoreStream(group[0].size, tables), todo, resources, on_unit)
    finally:
        log.flush()
