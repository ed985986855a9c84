"""`raydd dope`: a distilled set of any method plus selected originals (dsco.md, section 5), as a new run beside it.

Doping model (`raydd.pipelines.doping_model`), one pass over all originals (`raydd.score.margin`), choice on the driver
(`raydd.distill.doping`), then class by class: the distilled images as they are and the originals' own bytes. Pooled
without weights, one-shot, as released. Running the same command again goes on where it stopped; with `--scores DIR`
further fractions share model and scores. Originals that the set already holds whole are not added again (ours).
"""

import dataclasses
import functools
import time
from typing import Any

from raydd.config import content_hash, to_plain
from raydd.distill.doping import Selection, select
from raydd.errors import UserError
from raydd.pipelines.dope_request import STAGE, DopeOptions, Doping, prepare
from raydd.pipelines.doping_model import DopingModel
from raydd.pipelines.job import Job, close_log, is_settled
from raydd.pipelines.score import Scoring, Table, feature_scoring, fill_tables, identity, open_table
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources
from raydd.score.margin import ClarityScorer
from raydd.score.table import ScoreConfig
from raydd.store import distilled, events, filesystem, scores
from raydd.store.distilled import DistilledImage
from raydd.store.holder import hold
from raydd.store.progress import start_work
from raydd.store.run import Run

# What dataset.json takes over from the set that is doped; the rest is counted or decided anew.
KEPT = ("seed", "size", "normalization", "source", "factor", "codec")


@dataclasses.dataclass(frozen=True)
class DopedClass:
    """One class of a doped set as a unit: the distilled images of `base` (None: none), then the originals."""

    job: Job
    base: str | None
    label: int
    keys: tuple[str, ...]
    scores: tuple[float, ...]
    method: str
    config_hash: str

    @property
    def name(self) -> str:
        return f"{self.job.out}/{self.job.classes[self.label]}"

    @property
    def cost(self) -> float:
        return float(len(self.keys))

    def is_done(self) -> bool:
        return distilled.is_done(Run(self.job.out), self.label, self.config_hash)

    def run(self, context: Context) -> None:
        start, run = time.monotonic(), Run(self.job.out)
        kept = distilled.read_class(Run(self.base), self.label) if self.base else []
        images = kept + self._originals()
        facts = {"method": self.method, "config_hash": self.config_hash, "seed": self.job.seed}
        seconds = round(time.monotonic() - start, 3)
        distilled.commit_class(run, self.label, self.job.classes, images, **facts, seconds=seconds)
        events.append(run, "class_committed", name=self.job.classes[self.label], images=len(images), seconds=seconds)

    def _originals(self) -> list[DistilledImage]:
        images = []
        for record, score in zip(self.job.source.read(self.keys), self.scores):
            if not record.data:
                raise UserError(f"image {record.key!r} of {self.job.data} can no longer be read: restore it")
            images.append(DistilledImage(record.data, "real", (record.key,), scores=(score,)))
        return images


def dope(options: DopeOptions, resources: Resources) -> dict[str, Any]:
    """Make (or go on making) one doped set; returns its manifest. Raises `UserError`."""
    resources.check()
    start, doping = time.monotonic(), prepare(options)
    run = doping.run
    if _is_done(doping):
        return distilled.read_manifest(run)
    with hold(run):
        run.begin(STAGE, doping.config, seed=doping.job.seed, force=options.force)
        manifest = _make(doping, resources)
        close_log(run)
        run.end(STAGE, seconds=time.monotonic() - start, teacher=doping.teacher_audit)
    return manifest


def _make(doping: Doping, resources: Resources) -> dict[str, Any]:
    """Model, scores, choice, classes; returns the manifest."""
    options, storage = doping.options, doping.run.path("state", "train")
    try:
        if doping.model:
            if options.force and options.scores is None:
                doping.model.forget()
            run_units([doping.model], resources, "doping model", storage=storage)
        table = _table(doping)
        fill_tables([table], resources)
        selection = _choose(doping, table)
        units = _units(doping, selection)
        start_work(doping.run, STAGE, total=len(units), left=len(units) - len(distilled.committed_labels(doping.run)))
        try:
            run_units(units, resources, "classes", storage=storage, on_event=_record)
        finally:
            manifest = _write_manifest(doping, table, selection)
    finally:
        filesystem.remove_tree(storage)
    return manifest


def _is_done(doping: Doping) -> bool:
    done = not doping.options.force and is_settled(doping.run, STAGE, doping.config)
    return done and distilled.are_done(doping.run, range(len(doping.job.classes)), content_hash(doping.config))


def _table(doping: Doping) -> Table:
    """The score table; that of clarity depends on the weights, so the model must be there."""
    shared, force = doping.options.scores, doping.options.force
    if doping.model is None:
        scoring = feature_scoring(doping.job, ScoreConfig(scores=(doping.options.score,)))
    else:
        config = identity(doping.job, "clarity", {"model": doping.model.load().hash}, None)
        scoring = Scoring(config, None, functools.partial(_load_scorer, doping.job, doping.model))
    return open_table(doping.job, scoring, shared=shared, force=force and shared is None)


def _choose(doping: Doping, table: Table) -> Selection:
    """The originals to add, from the committed scores."""
    labels = range(len(doping.job.classes))
    rows = scores.read_all(table.run, labels, ["key", "label", doping.column])
    held = [
        key
        for label in (labels if doping.options.keep else ())
        for image in distilled.read_class(doping.base, label)
        for key in image.source_keys
        if image.origin == "real"
    ]
    return select(
        rows["key"].to_pylist(),
        rows["label"].to_numpy(),
        rows[doping.column].to_numpy(),
        doping.quotas,
        scope=doping.options.scope,
        start=doping.options.start,
        order=doping.config["doping"]["order"],
        leave_out=held,
    )


def _units(doping: Doping, selection: Selection) -> list[DopedClass]:
    """A unit per class."""
    digest, method = content_hash(doping.config), doping.config["method"]
    base = doping.base.uri if doping.options.keep else None
    chosen = zip(selection.keys, selection.scores)
    return [
        DopedClass(doping.job, base, label, keys, values, method, digest) for label, (keys, values) in enumerate(chosen)
    ]


def _write_manifest(doping: Doping, table: Table, selection: Selection) -> dict[str, Any]:
    added, kept = sum(selection.counts), doping.manifest["images"] if doping.options.keep else 0
    facts_of = {
        **doping.config["doping"],
        "base": doping.base.uri,
        "distilled": kept,
        "originals": added,
        "counts": dict(zip(doping.job.classes, selection.counts)),
        "share": (kept + added) / len(doping.job.source),
        "not_finite": selection.dropped,
        "unreadable": len(scores.read_dropped(table.run)),
        "filled": selection.filled,
        "model": doping.model.facts() if doping.model else None,
    }
    facts = {name: doping.manifest[name] for name in KEPT} | {
        "method": doping.config["method"],
        # Judged as what it is: a set of so many images per class, with the epochs and beside the rows of that size.
        "ipc": max(1, round((kept + added) / len(doping.job.classes))),
        "labels": doping.labels,
        "config_hash": content_hash(doping.config),
        "scores": table.run.uri,
        "teacher_audit": doping.teacher_audit,
        "doping": facts_of,
    }
    return distilled.write_manifest(doping.run, doping.job.classes, **to_plain(facts))


def _load_scorer(job: Job, model: DopingModel, device: str) -> ClarityScorer:
    teacher = job.teacher.load(device) if job.teacher else None
    return ClarityScorer(model.load(device), teacher, batch=job.batch)


def _record(unit: DopedClass, event: str, facts: dict[str, Any]) -> None:
    events.append(Run(unit.job.out), event, name=unit.job.classes[unit.label], **facts)
