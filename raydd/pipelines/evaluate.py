"""Judging distilled sets: students of every run, protocol, architecture and seed as units of one queue."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from raydd.config import content_hash, to_plain
from raydd.data.source import Source, check_same_classes, open_source, open_validation, source_exists
from raydd.errors import UserError
from raydd.evaluate import overlap
from raydd.evaluate.record import FULL, Evaluation, read_evaluations, read_seed, write_evaluation
from raydd.evaluate.views import RECORD, write_views
from raydd.models.normalization import Normalization
from raydd.models.registry import check_fits, default_students, resolve_arch
from raydd.models.teacher import Teacher
from raydd.pipelines.job import close_log
from raydd.pipelines.labels import STORED, label_form, label_source, recorded_teacher
from raydd.pipelines.students import StudentUnit, load_training, resolve_protocol
from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources
from raydd.store import distilled, events, filesystem
from raydd.store.holder import hold
from raydd.store.plain import read_json
from raydd.store.progress import start_work
from raydd.store.run import PACKAGES, Run, installed_versions
from raydd.train.protocol import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Which runs, and how their students are trained."""

    # Run directories, one or several.
    run: tuple[str, ...]
    # Student architectures, separated by commas (convnet3w64 is a ConvNet-3 of width 64); None takes the defaults for
    # the image size.
    students: str | None = None
    # Protocols, separated by commas: hard, soft, rded, infoutil ...; hard@100 trains 100 epochs.
    protocol: str = "hard,soft"
    # Label teacher; None takes the one that the run records.
    teacher: str | None = None
    # First student seed; None takes the run's own distillation seed, so that runs of several seeds are paired.
    first_seed: int | None = None
    # Arithmetic of students: fp32, or bf16 where the device is fast in it.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Whether protocols may mirror images; switch off where a mirrored image is another class, as with digits.
    flip: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RecipeOptions):
    """Which runs to judge, on which images, by which students; all students share one queue of work."""

    # Validation source: held-out images, or a parent with a val part.
    val: str
    # Students per run, protocol and architecture; each seed fixes initialization, order and augmentation for all runs.
    seeds: int = 3
    # Soft label form; None takes the run's own.
    labels: Literal["online", "views", "patch", "single"] | None = None
    # Workers per student (data-parallel training of large students); 1 trains many side by side.
    ddp: int = 1


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


def check_options(options: EvaluateOptions, resources: Resources) -> None:
    """Raise `UserError` for numbers out of range and for options that do not go together."""
    resources.check()
    for name in ("seeds", "ddp"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.ddp > 1 and resources.executor != "ray":
        raise UserError(f"--ddp {options.ddp} needs --executor ray")
    if not options.run:
        raise UserError("no run to evaluate: give one or several with --run RUN RUN ...")


def _units(run: Run, val: Source, options: EvaluateOptions) -> Iterable[StudentUnit]:
    manifest = distilled.read_manifest(run)
    check_complete(run, manifest)
    check_validation(run, manifest, val)
    first = manifest["seed"] if options.first_seed is None else options.first_seed
    recipes = list(_recipes(manifest, options))
    if options.labels and all(protocol.labels == "hard" for _, protocol in recipes):
        raise UserError(f"--labels {options.labels} has no effect on protocol {options.protocol}: add --protocol soft")
    for student, protocol in recipes:
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


def _recipes(manifest: dict[str, Any], options: RecipeOptions) -> Iterable[tuple[str, Protocol]]:
    """Every student under every protocol that is asked for."""
    students = options.students.split(",") if options.students else default_students(manifest["size"])
    switches = {"flip": options.flip, "precision": options.precision}
    for name in options.protocol.split(","):
        for student in students:
            arch = resolve_arch(student.strip())
            yield arch, resolve_protocol(name.strip(), manifest, arch, **switches)


def check_student(run: Run, manifest: dict[str, Any], arch: str, protocol: Protocol) -> None:
    """Raise `UserError` if the network is not for a run's images."""
    try:
        check_fits(arch, num_classes=len(manifest["classes"]), image_size=manifest["size"], norm=protocol.norm)
    except UserError as error:
        raise UserError(f"--students {arch} does not fit {run.uri}: {error}") from error


def check_complete(run: Run, manifest: dict[str, Any]) -> None:
    """Raise `UserError` if classes of the set are missing."""
    missing = [name for name in manifest["classes"] if name not in manifest["counts"]]
    if missing and manifest["method"] != FULL:
        raise UserError(
            f"{run.uri} lacks {len(missing)} of {len(manifest['classes'])} classes (first: {missing[0]!r}): "
            "run the same 'raydd distill' command again to finish it"
        )


def check_validation(run: Run, manifest: dict[str, Any], val: Source) -> None:
    """Raise `UserError` if the validation source has other classes, or shares images with the training source."""
    check_same_classes(_Named(run.uri, tuple(manifest["classes"])), val)
    source = manifest["source"]["uri"]
    if source_exists(source):
        overlap.check_sources(open_source(source, "train").root, val.root)


@dataclasses.dataclass(frozen=True)
class _Named:
    uri: str
    classes: tuple[str, ...]


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


def views_hash(run: Run) -> str:
    """Hash of what a run's stored views are; `UserError` if there are none."""
    uri = run.path("distilled", "views", RECORD)
    if not filesystem.exists(uri):
        raise UserError(
            f"{run.uri} holds no stored views: write them with 'raydd store-labels', or use --labels online"
        )
    return content_hash(read_json(uri))


def store_views(run_uri: str, options: RecipeOptions, codec: str) -> int:
    """Store the label teacher's logits of every view of the first soft protocol; returns the bytes."""
    run = Run(filesystem.absolute(run_uri))
    manifest = distilled.read_manifest(run)
    check_complete(run, manifest)
    protocol = next((protocol for _, protocol in _recipes(manifest, options) if protocol.labels == "soft"), None)
    if protocol is None:
        raise UserError(f"protocol {options.protocol} needs no soft labels: choose one that does, e.g. --protocol soft")
    train, _ = load_training(run, manifest, protocol)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = recorded_teacher(manifest, options.teacher).load(device)
    seed = manifest["seed"] if options.first_seed is None else options.first_seed
    normalization = Normalization(tuple(manifest["normalization"]["mean"]), tuple(manifest["normalization"]["std"]))
    views = run.path("distilled", "views")
    with hold(run):
        write_views(views, train, protocol, teacher, seed, normalization=normalization, codec=codec, device=device)
    return sum(filesystem.list_sizes(views).values())
