"""Who labels a distilled set, when it is made and when it is judged: one rule for every method, because the teacher of
the labels is no part of the images.

InfoUtil labels small sets with an early teacher (paper, appendix: IPC 1 and 10), larger ones with the converged one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from raydd.errors import UserError, choose
from raydd.models.teacher import check_classes
from raydd.pipelines.job import Job, TeacherSpec
from raydd.store import filesystem
from raydd.train.protocol import Protocol as Recipe

EARLY_UP_TO = 10
# Forms whose logits are stored with the images.
STORED = ("patch", "single")
SOFT = ("online", "views", *STORED)


class LabelSwitches(Protocol):
    """The part of a method's configuration that decides its labels and its codec."""

    labels: str
    label_teacher: str | None
    codec: str


def choose_label_teacher(switches: LabelSwitches, job: Job) -> tuple[TeacherSpec | None, dict[str, Any]]:
    """The teacher that labels a set (None for hard labels), and what dataset.json says of the labels.

    Raises `UserError` if stored labels or an early teacher are asked for and there is none.
    """
    form = switches.labels
    facts = {"form": form, "teacher": None, "teacher_hash": None, "teacher_top1": None, "early": False}
    if job.teacher is None and form in STORED:
        raise UserError(f"--labels {form} needs a teacher: add --teacher DIR, or choose --labels hard")
    if job.teacher is None or form == "hard":
        return None, facts | {"form": "hard"}
    spec = _early(switches, job) or job.teacher
    teacher = spec.load()
    return spec, facts | {
        "teacher": spec.name,
        "teacher_arch": spec.arch,
        "teacher_rows": spec.rows,
        "teacher_hash": teacher.hash,
        "teacher_top1": teacher.info.top1,
        "early": spec.early,
    }


def _early(switches: LabelSwitches, job: Job) -> TeacherSpec | None:
    """The early teacher, if it is asked for, or if the set is small and there is one."""
    if switches.label_teacher == "converged" or (switches.label_teacher is None and job.ipc > EARLY_UP_TO):
        return None
    early = dataclasses.replace(job.teacher, early=True)
    try:
        early.load()
    except UserError:
        if switches.label_teacher == "early":
            raise
        return None
    return early


@dataclasses.dataclass(frozen=True)
class LabelSource:
    """What a student is taught by: the label form, and the facts of the teacher behind soft ones.

    `spec` opens that teacher where students or views need its outputs; stored labels need it no more.
    """

    form: str
    teacher: str | None = None
    teacher_hash: str | None = None
    teacher_top1: float | None = None
    early: bool = False
    spec: TeacherSpec | None = None

    def facts(self) -> dict[str, Any]:
        """Everything but `spec`, as evaluations record it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "spec"}


def label_form(recipe: Recipe, labels: Mapping[str, Any], wanted: str | None) -> str:
    """The label form that a recipe is trained with: hard, or the one asked for, or the run's own soft form, or online.

    Raises `UserError` for a form that the run does not hold.
    """
    if recipe.labels == "hard":
        return "hard"
    if wanted == "hard":
        raise UserError(f"protocol {recipe.name} needs soft labels, not --labels hard: choose one of {', '.join(SOFT)}")
    form = "online" if labels["form"] == "hard" else labels["form"]
    if wanted is not None:
        form = choose("label form", wanted, SOFT)
    if form in STORED and labels["form"] != form:
        raise UserError(
            f"the run stores no {form} labels (it was made with --labels {labels['form']}): "
            f"distill it with --labels {form}, or choose --labels online"
        )
    return form


def label_source(form: str, manifest: Mapping[str, Any], named: str | None) -> LabelSource:
    """The teacher behind the soft labels of a run: the one `named`, else the one that the run records.

    Raises `UserError` if there is none, or if another one stands at the recorded place.
    """
    labels = manifest["labels"]
    if form == "hard":
        return LabelSource(form)
    if named is None and labels["teacher"] is None:
        raise UserError("soft labels need a teacher and the run records none: add --teacher DIR, or --protocol hard")
    if form in STORED or (form == "views" and named is None):
        return LabelSource(
            form, **{name: labels[name] for name in ("teacher", "teacher_hash", "teacher_top1", "early")}
        )
    spec = recorded_teacher(manifest, named)
    teacher = spec.load()
    return LabelSource(form, spec.name, teacher.hash, teacher.info.top1, spec.early, spec)


def recorded_teacher(manifest: Mapping[str, Any], named: str | None) -> TeacherSpec:
    """The label teacher of a run, opened by the name it records or by the one `named`."""
    labels = manifest["labels"]
    name = named or labels["teacher"]
    if name is None:
        raise UserError("the run records no label teacher: add --teacher DIR")
    spec = TeacherSpec(
        name=filesystem.absolute(name) if filesystem.exists(name) else name,
        arch=labels.get("teacher_arch"),
        rows=tuple(labels["teacher_rows"]) if labels.get("teacher_rows") else None,
        classes=tuple(manifest["classes"]),
        image_size=manifest["size"],
        early=labels["early"],
    )
    digest = check_teacher(spec)
    if named is None and digest != labels["teacher_hash"]:
        raise UserError(
            f"the teacher at {name} is not the one that {manifest['method']} was made with "
            f"({digest} instead of {labels['teacher_hash']}): restore it, or name another with --teacher"
        )
    return spec


def check_teacher(spec: TeacherSpec) -> str:
    """The hash of a teacher whose classes were compared with those it is to label."""
    teacher = spec.load()
    if warning := check_classes(teacher, spec.classes):
        print(f"warning: {warning}")
    return teacher.hash
