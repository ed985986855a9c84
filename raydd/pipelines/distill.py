"""A method from source to distilled set: check, score, build class by class, commit, manifest.

Everything that can be refused is refused before anything is written. Running the same command again goes on where it
stopped, and does nothing when all is done; `force` is the only way to redo. With `classes` only these are (re)made,
into the set that is there.
"""

import dataclasses
import time
from typing import Any

from raydd.config import content_hash, to_plain
from raydd.distill.candidates import check_counts
from raydd.distill.controls import ControlConfig
from raydd.distill.encode import resolve_codec
from raydd.evaluate.record import FULL
from raydd.pipelines.job import Job, audit, check_stage, close_log, is_settled
from raydd.pipelines.labels import STORED, choose_label_teacher
from raydd.pipelines.method import Method, packs_of
from raydd.pipelines.pack_unit import PackUnit
from raydd.pipelines.request import DistillOptions, chosen_classes, open_job
from raydd.pipelines.score import Table, fill_tables, open_table
from raydd.pipelines.together import check_together, run_together
from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources
from raydd.store import distilled, events, filesystem, state
from raydd.store.holder import hold
from raydd.store.progress import start_work
from raydd.store.run import Run

STAGE = "distill"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked distillation: `redo` are labels to make again, `force` makes everything again."""

    job: Job
    config: dict[str, Any]
    units: list[PackUnit]
    table: Table | None
    facts: dict[str, Any]
    redo: list[int]
    force: bool
    start: float

    @property
    def run(self) -> Run:
        return Run(self.job.out)

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        if self.force or self.redo or not is_settled(self.run, STAGE, self.config):
            return False
        wanted = (label for unit in self.units for label in unit.wanted)
        return distilled.are_done(self.run, wanted, content_hash(self.config))

    def begin(self) -> None:
        """Record the stage; set aside what is to be made again."""
        self.run.begin(STAGE, self.config, seed=self.job.seed, force=self.force)
        for unit in self.units if self.force or self.redo else ():
            state.delete(self.run, unit.key)
        for label in self.redo:
            filesystem.remove_tree(filesystem.join(distilled.class_dir(self.run, label), "done.json"))
        if self.redo:
            # The classes are missing until they are made again, and the revision tells every reader so.
            self.write_manifest()

    def write_manifest(self) -> dict[str, Any]:
        """Bring dataset.json up to date and return it."""
        return distilled.write_manifest(self.run, self.job.classes, **self.facts)

    def end(self) -> None:
        """Close the stage."""
        close_log(self.run)
        self.run.end(STAGE, seconds=time.monotonic() - self.start, teacher=self.facts["teacher_audit"])


def distill(options: DistillOptions, method: Method, resources: Resources, ddp: int = 1) -> dict[str, Any]:
    """Make (or go on making) one distilled set; returns its manifest.

    `ddp` workers compute each unit together where the method shares out its images, with the same result as one.
    """
    return distill_many([(options, method)], resources, ddp)[0]


def distill_many(
    requests: list[tuple[DistillOptions, Method]], resources: Resources, ddp: int = 1
) -> list[dict[str, Any]]:
    """Make several sets; their classes share one group of workers, so that starting one is paid for once."""
    resources.check()
    prepared = [prepare(options, method) for options, method in requests]
    check_together(ddp, [(method, item.job) for (_, method), item in zip(requests, prepared)], resources)
    if todo := [item for item in prepared if not item.is_done()]:
        with hold(*(item.run for item in todo)):
            for item in todo:
                item.begin()
            fill_tables([item.table for item in todo if item.table], resources)
            _run(todo, resources, ddp)
    return [item.write_manifest() for item in prepared]


def _run(todo: list[Prepared], resources: Resources, ddp: int) -> None:
    """Build the classes; whatever happens, the manifests say what is there."""
    storage = filesystem.join(todo[0].job.out, "state", "train")
    for item in todo:
        wanted = {label for unit in item.units for label in unit.wanted}
        start_work(item.run, STAGE, total=len(wanted), left=len(wanted - distilled.committed_labels(item.run)))
    try:
        units = [unit for item in todo for unit in item.units]
        if ddp > 1:
            run_together(units, ddp, resources, storage)
        else:
            run_units(units, resources, "classes", storage=storage, on_event=_record)
    finally:
        for item in todo:
            item.write_manifest()
        filesystem.remove_tree(storage)
    for item in todo:
        item.end()


def _record(unit: PackUnit, event: str, facts: dict[str, Any]) -> None:
    events.append(Run(unit.job.out), event, name=unit.key, **facts)


def prepare(options: DistillOptions, method: Method) -> Prepared:
    """Check a request against its source, its teacher and its run directory; nothing is written."""
    start = time.monotonic()
    job = open_job(options)
    method.check(job)
    chosen = chosen_classes(options.classes, job.classes)
    force = options.force and options.classes is None
    label_teacher, label_facts = choose_label_teacher(method.output, job)
    teacher_facts = audit(job.teacher, job.data, job.size) if job.teacher else {}
    config = {
        "method": method.name,
        "ipc": job.ipc,
        "seed": job.seed,
        "size": job.size,
        "source": job.fingerprint,
        "classes": job.classes,
        "teacher": job.teacher_hash,
        "label_teacher": label_facts["teacher_hash"],
        "batch": job.batch,
        "precision": job.precision,
        "options": method.config,
    }
    if job.prior is not None:
        config |= {"prior": job.prior_hash, "class_map": job.prior.class_map}
    check_stage(Run(job.out), STAGE, config, force)
    scoring = method.scoring(job)
    table = None
    if scoring is not None:
        # A shared table belongs to other runs too: forcing one of them must not take it away.
        table = open_table(job, scoring, shared=options.scores, force=force and options.scores is None)
    digest = content_hash(config)
    stored = label_teacher if label_facts["form"] in STORED else None
    facts = _manifest_facts(
        job,
        method=method.name,
        factor=method.factor(job.size),
        codec=resolve_codec(method.output.codec, job.size),
        labels=label_facts,
        config_hash=digest,
        scores=table.run.uri if table else None,
        teacher_audit=teacher_facts,
    )
    return Prepared(
        job=job,
        config=config,
        units=[
            PackUnit(job, method, pack, wanted, digest, table.run if table else None, stored)
            for pack in packs_of(method, job)
            if (wanted := tuple(label for label in pack if label in chosen))
        ],
        table=table,
        facts=facts,
        redo=chosen if options.force and options.classes is not None else [],
        force=force,
        start=start,
    )


def reference(options: DistillOptions) -> dict[str, Any]:
    """Write a run that stands for the whole training source: `full`, the ceiling of every table.

    It holds no images. `evaluate` trains the source itself, for exactly the steps of a set of this IPC, with the label
    teacher that a distilled set of this IPC gets.
    """
    job = open_job(options)
    check_counts(job.counts(), job.ipc, 1)
    _, labels = choose_label_teacher(ControlConfig(), job)
    config = {
        "method": FULL,
        "ipc": job.ipc,
        "seed": job.seed,
        "size": job.size,
        "source": job.fingerprint,
        "labels": labels,
    }
    run = Run(job.out)
    check_stage(run, STAGE, config, options.force)
    fresh = options.force or not is_settled(run, STAGE, config)
    facts = _manifest_facts(job, method=FULL, factor=1, codec="source", labels=labels, config_hash=content_hash(config))
    if not fresh:
        return distilled.write_manifest(run, job.classes, **facts)
    with hold(run):
        run.begin(STAGE, config, seed=job.seed, force=options.force)
        manifest = distilled.write_manifest(run, job.classes, **facts)
        run.end(STAGE, seconds=0.0)
    return manifest


def _manifest_facts(job: Job, **more: Any) -> dict[str, Any]:
    facts = {
        "ipc": job.ipc,
        "seed": job.seed,
        "size": job.size,
        "normalization": job.normalization,
        "source": {"uri": job.data, "fingerprint": job.fingerprint, "kind": job.kind},
    }
    return to_plain(facts | more)
