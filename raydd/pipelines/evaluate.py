"""Judging distilled sets: students of every run, protocol, architecture and seed as units of one queue."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from raydd.config import to_plain
from raydd.data.source import Source, open_validation
from raydd.errors import UserError
from raydd.evaluate.record import Evaluation, read_evaluations, read_seed, write_evaluation
from raydd.models.teacher import Teacher
from raydd.pipelines.evaluate_request import (
    EvaluateOptions,
    check_complete,
    check_options,
    check_student,
    check_validation,
    recipes,
)
from raydd.pipelines.job import close_log
from raydd.pipelines.labels import STORED, label_form, label_source
from raydd.pipelines.store_labels import views_hash
from raydd.pipelines.students import StudentUnit
from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources
from raydd.store import distilled, events, filesystem
from raydd.store.holder import hold
from raydd.store.progress import start_work
from raydd.store.run import PACKAGES, Run, installed_versions


def evaluate(options: EvaluateOptions, resources: Resources) -> list[Evaluation]:
    """Train and test all students that are not done; one evaluation per run, protocol and student."""
    check_options(options, resources)
    val = open_validation(options.val)
    groups: dict[tuple[str, str, str], list[StudentUnit]] = defaultdict(list)
    for uri in options.run:
        for unit in _units(Run(filesystem.absolute(uri)), val, options):
            groups[unit.run_uri, unit.protocol.name, unit.student].append(unit)
    todo = [unit for group in groups.values() for unit in group if not unit.is_done()]
    with hold(*(Run(uri) for uri in sorted({unit.run_uri for unit in todo}))):
        try:
            if todo:
                _train(todo, options, resources)
        finally:
            finished = [[unit for unit in group if unit.is_done()] for group in groups.values()]
            evaluations = [_merge(group, val) for group in finished if group]
    return evaluations


def _train(todo: Sequence[StudentUnit], options: EvaluateOptions, resources: Resources) -> None:
    """Train students, and record in their runs that it was done."""
    runs = [Run(uri) for uri in sorted({unit.run_uri for unit in todo})]
    for run in runs:
        run.touch("evaluate")
        count = sum(unit.run_uri == run.uri for unit in todo)
        start_work(run, "evaluate", total=count, left=count)
    storage = filesystem.join(runs[0].uri, "state", "train")
    try:
        if options.ddp > 1:
            _run_ddp(todo, options.ddp, resources, storage)
        else:
            run_units(todo, resources, "students", storage=storage, on_event=_record)
    finally:
        for run in runs:
            close_log(run)
            done = [unit for unit in todo if unit.run_uri == run.uri and unit.is_done()]
            run.end("evaluate", students=len(done), seconds=sum(unit.read()["seconds"] for unit in done))
        filesystem.remove_tree(storage)


def _record(unit: StudentUnit, event: str, facts: dict[str, Any]) -> None:
    events.append(Run(unit.run_uri), event, name=unit.slug, **facts)


def _units(run: Run, val: Source, options: EvaluateOptions) -> Iterable[StudentUnit]:
    manifest = distilled.read_manifest(run)
    check_complete(run, manifest)
    check_validation(run, manifest, val)
    first = manifest["seed"] if options.first_seed is None else options.first_seed
    asked = list(recipes(manifest, options))
    if options.labels and all(protocol.labels == "hard" for _, protocol in asked):
        raise UserError(f"--labels {options.labels} has no effect on protocol {options.protocol}: add --protocol soft")
    for student, protocol in asked:
        check_student(run, manifest, student, protocol)
        form = label_form(protocol, manifest["labels"], options.labels)
        labels = label_source(form, manifest, options.teacher)
        views = first if form == "views" else None
        for seed in range(first, first + options.seeds):
            yield StudentUnit(
                run_uri=run.uri,
                val=options.val,
                protocol=protocol,
                student=student,
                seed=seed,
                labels=labels,
                revision=manifest["revision"],
                val_fingerprint=val.fingerprint,
                label_seed=views,
                views=None if views is None else views_hash(run),
            )


def _run_ddp(units: Sequence[StudentUnit], world: int, resources: Resources, storage: str) -> None:
    from raydd.runtime.ray_ddp import train_together

    for unit in units:
        train_together(unit, world, resources, storage)


def _merge(group: Sequence[StudentUnit], val: Source) -> Evaluation:
    """One file per (protocol, student) with what its seeds gave; written only when it says something new."""
    first = group[0]
    run = Run(first.run_uri)
    manifest = distilled.read_manifest(run)
    spec = first.labels.spec
    evaluation = Evaluation(
        protocol=to_plain(first.protocol),
        protocol_hash=first.protocol.hash,
        student=first.student,
        method=manifest["method"],
        ipc=manifest["ipc"],
        distill_seed=manifest["seed"],
        revision=manifest["revision"],
        validation={"uri": val.uri, "fingerprint": val.fingerprint, "count": len(val)},
        classes=manifest["classes"],
        labels=first.labels.facts(),
        bytes={
            "image": manifest["image_bytes"],
            "label": _label_bytes(run, first.labels.form, manifest),
            "teacher": _teacher_bytes(spec.load()) if spec and first.labels.form == "online" else 0,
        },
        versions=installed_versions(PACKAGES),
        seeds=[read_seed(unit.read()) for unit in group],
    )
    known = next((old for old in read_evaluations(run) if _says(old, evaluation)), None)
    if known is None:
        write_evaluation(run, evaluation)
    return known or evaluation


def _says(old: Evaluation, new: Evaluation) -> bool:
    """Whether an evaluation on file already holds every result of a new one."""
    same = ("protocol_hash", "student", "revision", "validation", "labels", "bytes")
    results = {seed.seed: (seed.last, seed.steps) for seed in old.seeds}
    return all(getattr(old, name) == getattr(new, name) for name in same) and all(
        results.get(seed.seed) == (seed.last, seed.steps) for seed in new.seeds
    )


def _label_bytes(run: Run, form: str, manifest: dict[str, Any]) -> int:
    if form == "views":
        return sum(filesystem.list_sizes(run.path("distilled", "views")).values())
    return manifest["label_bytes"] if form in STORED else 0


def _teacher_bytes(teacher: Teacher) -> int:
    return sum(t.numel() * t.element_size() for t in teacher.model.state_dict().values())
