"""What a person asks of a doping, and the checked request that it becomes (dsco.md, section 5).

Everything that can be refused without training is refused here, before anything is written.

Ours: balanced classes by default (`scope`); the labels of the doped set are made while students train, by the teacher
that its final number of images calls for (`raydd.pipelines.labels`), because labels stored with the distilled images do
not cover the originals; set and originals must be of one source.
"""

import dataclasses
import math
from typing import Any, Literal

from raydd.config import check_choices, content_hash
from raydd.distill.controls import ControlConfig
from raydd.distill.doping import check_budget, equal_quotas, fraction_quotas
from raydd.errors import UserError
from raydd.evaluate.record import FULL
from raydd.models.registry import default_students, resolve_arch
from raydd.pipelines.doping_model import DopingModel
from raydd.pipelines.job import Job, audit, check_stage
from raydd.pipelines.labels import choose_label_teacher, label_form, label_source
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.students import resolve_protocol
from raydd.store import distilled, filesystem
from raydd.store.run import Run

# A doped set is a distilled set, begun and ended as one.
STAGE = "distill"
# Scores of which the lowest, not the highest, are the hardest images.
LOW_IS_HARD = ("clarity", "margin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DopeOptions:
    """Which set to dope with how many originals, and how they are chosen."""

    # Finished run of any method; it stays as it is.
    run: str
    # Run directory of the doped set, at any path or URI; None takes RUN with `-doped` behind it.
    out: str | None = None
    # Source of the originals; None takes the one that the run was distilled from, where it was then.
    data: str | None = None
    # Teacher: directory of `train-teacher`, `NAME:pretrained` or a checkpoint file; None takes the run's label teacher.
    teacher: str | None = None
    # Originals to add per class (with --scope global: on average).
    per_class: int | None = None
    # Size of the doped set as a fraction of the source, in images; the originals fill what the set leaves.
    fraction: float | None = None
    # class: choose within each class; global: from one list over all classes, which makes them unequal (as released).
    scope: Literal["class", "global"] = "class"
    # Originals per class to skip before choosing: a guard against outliers and wrong labels.
    start: int = 0
    # Keep the distilled images; without them the chosen originals stand alone, which is a control.
    keep: bool = True
    # What is asked of each original: clarity, of a model trained on the set; or a score of the teacher.
    score: Literal["clarity", "gradnorm", "gradnorm_last", "el2n", "loss", "margin"] = "clarity"
    # The class that clarity asks for: the teacher's best one, or the label.
    target: Literal["teacher", "label"] = "teacher"
    # Which end of the scores; None takes the hardest: lowest clarity or margin, highest of the others.
    order: Literal["lowest", "highest"] | None = None
    # Network of the doping model; None takes the first student of `evaluate` for the image size.
    student: str | None = None
    # Protocol of the doping model; None takes soft, or hard without a teacher. Released: dsco_soft.
    protocol: str | None = None
    # Whether the doping model may see mirrored images; switch off where a mirrored image is another class.
    flip: bool = True
    # Seed of the doping model; None takes the run's.
    seed: int | None = None
    # Folder of doping models and score tables that several runs share; None keeps them in the new run.
    scores: str | None = None
    # Images per forward while scoring; part of the result's low bits.
    batch: int = 64
    # Arithmetic of the doping model's training: fp32, or bf16 where the device is fast in it.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Dope again.
    force: bool = False

    @property
    def destination(self) -> str:
        """Where the doped set goes."""
        return self.out or self.run.rstrip("/") + "-doped"

    def check(self) -> None:
        """Raise `UserError` for an unknown choice, a negative start, or not exactly one budget."""
        check_choices(self)
        if (self.per_class is None) == (self.fraction is None):
            raise UserError("give one budget: --per-class N, or --fraction F of the source")
        if self.start < 0:
            raise UserError(f"--start {self.start}: must be at least 0")
        if filesystem.absolute(self.run) == filesystem.absolute(self.destination):
            raise UserError(f"--out {self.out} is the run itself, which stays as it is: choose another directory")


@dataclasses.dataclass(frozen=True)
class Doping:
    """A checked request. `manifest` is that of the set to be doped, `quotas` the originals to add per class."""

    options: DopeOptions
    base: Run
    manifest: dict[str, Any]
    job: Job
    quotas: list[int]
    model: DopingModel | None
    config: dict[str, Any]
    labels: dict[str, Any]
    teacher_audit: dict[str, Any]

    @property
    def run(self) -> Run:
        return Run(self.job.out)

    @property
    def column(self) -> str:
        """The column of the score table that is looked at."""
        score = self.options.score
        return f"clarity_{self.options.target}" if score == "clarity" else score


def prepare(options: DopeOptions) -> Doping:
    """Check a request against its run, its source and its teacher; nothing is written. Raises `UserError`."""
    options.check()
    base = Run(filesystem.absolute(options.run))
    manifest = distilled.read_manifest(base)
    if manifest["method"] == FULL:
        raise UserError(f"{base.uri} stands for the whole source and holds no images: dope a distilled set")
    distilled.check_complete(base, manifest)
    job = _open_job(options, manifest)
    have = [manifest["counts"][name] if options.keep else 0 for name in manifest["classes"]]
    if options.fraction is None:
        quotas = equal_quotas(options.per_class, len(have))
    else:
        quotas = fraction_quotas(options.fraction, job.source.counts(), have)
    check_budget(quotas, job.source.counts(), options.start)
    if options.score == "clarity" and options.target == "teacher" and job.teacher is None:
        raise UserError(
            "--target teacher needs a teacher and the run records none: add --teacher DIR, or --target label"
        )
    model = _model(options, base, manifest, job) if options.score == "clarity" else None
    labels = _labels(manifest, job, sum(have) + sum(quotas))
    config = _config(options, base, manifest, job, model, labels)
    check_stage(Run(job.out), STAGE, config, options.force)
    teacher_audit = audit(job.teacher, job.data, job.size) if job.teacher else {}
    return Doping(options, base, manifest, job, quotas, model, config, labels, teacher_audit)


def _open_job(options: DopeOptions, manifest: dict[str, Any]) -> Job:
    labels, own = manifest["labels"], options.teacher is None
    job = open_job(
        DistillOptions(
            data=options.data or manifest["source"]["uri"],
            out=options.destination,
            ipc=manifest["ipc"],
            teacher=labels["teacher"] if own else options.teacher,
            teacher_arch=labels.get("teacher_arch") if own else None,
            teacher_rows=tuple(labels["teacher_rows"]) if own and labels.get("teacher_rows") else None,
            size=manifest["size"],
            seed=manifest["seed"],
            batch=options.batch,
        )
    )
    if job.fingerprint != manifest["source"]["fingerprint"]:
        raise UserError(
            f"{job.data} is not the source that {options.run} was distilled from: give that one with --data"
        )
    return job


def _model(options: DopeOptions, base: Run, manifest: dict[str, Any], job: Job) -> DopingModel:
    student = resolve_arch(options.student or default_students(job.size)[0])
    name = options.protocol or ("hard" if job.teacher is None else "soft")
    protocol = resolve_protocol(name, manifest, student, flip=options.flip, precision=options.precision)
    return DopingModel(
        folder=filesystem.absolute(options.scores) if options.scores else job.out,
        base=base.uri,
        images=content_hash(manifest["hashes"]),
        protocol=protocol,
        student=student,
        seed=job.seed if options.seed is None else options.seed,
        labels=label_source(label_form(protocol, manifest["labels"], None), manifest, options.teacher),
    )


def _labels(manifest: dict[str, Any], job: Job, images: int) -> dict[str, Any]:
    """What dataset.json says of the labels of a doped set of so many images."""
    switches = ControlConfig(
        labels="hard" if manifest["labels"]["form"] == "hard" else "online",
        label_teacher=None if manifest["labels"]["early"] else "converged",
    )
    per_class = math.ceil(images / len(job.classes))
    return choose_label_teacher(switches, dataclasses.replace(job, ipc=per_class))[1]


def _config(
    options: DopeOptions,
    base: Run,
    manifest: dict[str, Any],
    job: Job,
    model: DopingModel | None,
    labels: dict[str, Any],
) -> dict[str, Any]:
    doping = {name: getattr(options, name) for name in ("per_class", "fraction", "scope", "start", "keep", "score")}
    doping["order"] = options.order or ("lowest" if options.score in LOW_IS_HARD else "highest")
    if model:
        doping |= {"target": options.target, "student": model.student, "protocol": model.protocol.name}
        doping |= {"recipe": model.protocol.hash, "labels": model.labels.form, "seed": options.seed}
    return {
        "method": f"{manifest['method']}{'+dope' if options.keep else '-chosen'}",
        "ipc": job.ipc,
        "seed": job.seed,
        "size": job.size,
        "source": job.fingerprint,
        "classes": job.classes,
        "teacher": job.teacher_hash,
        "label_teacher": labels["teacher_hash"],
        "batch": job.batch,
        # Of the set that is doped: what it is, and how it was made.
        "base": content_hash(manifest["hashes"]),
        "options": base.read()["config"][STAGE].get("options"),
        "doping": doping,
    }
