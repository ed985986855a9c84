"""What a distillation is about, opened and checked once: source, teachers, prior, working size, classes.

Everything here is small to pickle: workers open the source, the teachers and the prior again by name, once per process.
"""

import dataclasses
import functools
from typing import Any

import pyarrow.compute as pc
import torch

from raydd.config import difference, to_plain
from raydd.data.source import Source, open_source
from raydd.data.tensors import load_images
from raydd.errors import UserError
from raydd.keyed import smallest
from raydd.models.audit import measure_teacher, verdict
from raydd.models.prior.base import Prior
from raydd.models.prior.pipeline import load_prior
from raydd.models.teacher import Teacher, check_classes, load_teacher
from raydd.report.scalars import write_scalars
from raydd.store import events
from raydd.store import filesystem as files
from raydd.store.run import Run

AUDIT_IMAGES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher by name, as a user gives it; `load` opens it once per process and device."""

    name: str
    arch: str | None = None
    rows: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    early: bool = False

    def load(self, device: str = "cpu") -> Teacher:
        return _load(self, device)


@functools.lru_cache(maxsize=4)
def _load(spec: TeacherSpec, device: str) -> Teacher:
    return load_teacher(
        spec.name,
        arch=spec.arch,
        rows=spec.rows,
        classes=spec.classes,
        image_size=spec.image_size,
        early=spec.early,
        device=device,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorSpec:
    """A prior by name, as a user gives it; `load` opens it once per process and device.

    classes: the source's, whose index is the label that the prior is asked for. class_map: pairs of a source class and
    the prior's class or label, where names alone do not match.
    """

    name: str
    classes: tuple[str, ...]
    class_map: tuple[tuple[str, str | int], ...] | None = None
    guidance_channels: str = "all"

    def load(self, device: str = "cpu") -> Prior:
        return _load_prior(self, device)


@functools.lru_cache(maxsize=2)
def _load_prior(spec: PriorSpec, device: str) -> Prior:
    return load_prior(
        spec.name,
        device=device,
        classes=spec.classes,
        class_map=None if spec.class_map is None else dict(spec.class_map),
        guidance_channels=spec.guidance_channels,
    )


@functools.lru_cache(maxsize=8)
def opened(uri: str, split: str) -> Source:
    """The source at `uri`, listed once per process."""
    return open_source(uri, split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked distillation: what every stage and every worker needs to know."""

    data: str
    out: str
    ipc: int
    seed: int
    size: int
    classes: tuple[str, ...]
    fingerprint: str
    kind: str
    teacher: TeacherSpec | None
    teacher_hash: str | None
    normalization: dict[str, list[float]]
    batch: int = 64
    precision: str = "fp32"
    prior: PriorSpec | None = None
    prior_hash: str | None = None

    @property
    def source(self) -> Source:
        return opened(self.data, "train")

    def counts(self) -> dict[str, int]:
        """Source images per class name, broken ones included."""
        return dict(zip(self.classes, self.source.counts()))

    def keys(self, label: int) -> list[str]:
        """The keys of one class, as the source lists them."""
        index = self.source.index()
        return index["key"].filter(pc.equal(index["label"], label)).to_pylist()

    def packs(self, several: int) -> list[tuple[int, ...]]:
        """The labels of all classes, `several` at a time: what is asked for and who is free do not matter."""
        labels = range(len(self.classes))
        return [tuple(labels[start : start + several]) for start in range(0, len(labels), several)]


def open_teacher(
    name: str, source: Source, *, arch: str | None, rows: tuple[int, ...] | None, size: int | None, early: bool = False
) -> TeacherSpec:
    """Load a teacher against a source and compare class names and order; the spec that every worker loads it by."""
    spec = TeacherSpec(
        name=absolute_if_there(name), arch=arch, rows=rows, classes=source.classes, image_size=size, early=early
    )
    warning = check_classes(spec.load(), source.classes)
    if warning:
        print(f"warning: {warning}")
    return spec


def absolute_if_there(name: str) -> str:
    """Workers may run in another directory; `NAME:pretrained` and hub ids are no paths."""
    return files.absolute(name) if files.exists(name) else name


@functools.lru_cache(maxsize=8)
def audit(spec: TeacherSpec, data: str, size: int) -> dict[str, Any]:
    """Measure a teacher on (part of) the validation source, through the loader that everything else uses; once.

    Raises `UserError` if it is too weak or its class order is evidently wrong; prints warnings. Returns {} when there
    is no validation source.
    """
    try:
        source = opened(data, "val")
    except UserError as error:
        print(f"warning: the teacher was not measured: {error}")
        return {}
    keys = source.index()["key"].to_pylist()
    chosen = [keys[i] for i in smallest(keys, AUDIT_IMAGES, "audit")]
    images = load_images(source, size, keys=chosen)
    teacher = spec.load("cuda" if torch.cuda.is_available() else "cpu")
    report = measure_teacher(teacher, (images.images, images.labels))
    stated = teacher.info.top1 if len(teacher.info.classes) == len(source.classes) and spec.rows is None else None
    # The sampling error of a thousand images would trip the two-point rule about stated accuracies by itself.
    stated = None if stated is None else stated - 2 * (stated * (1 - stated) / report.count) ** 0.5
    for warning in verdict(report, early=spec.early or teacher.info.early, stated_top1=stated):
        print(f"warning: {warning}")
    return {"top1": report.top1, "entropy": report.entropy, "images": report.count}


def check_stage(run: Run, stage: str, config: Any, force: bool) -> None:
    """Raise `UserError` naming the options that differ if `stage` was begun here with another configuration.

    Nothing is written, so that a request of several stages is refused as a whole.
    """
    known = _stage_config(run, stage)
    if not force and known is not None and known != to_plain(config):
        raise UserError(
            f"{run.uri} holds a {stage} stage of another configuration ({'; '.join(difference(known, config))}): "
            "choose another --out, or --force (without --classes) to start it anew"
        )


def close_log(run: Run) -> None:
    """At the end of a stage: fold the run's events into one file, and write what they tell in numbers."""
    events.fold(run)
    write_scalars(run)


def is_settled(run: Run, stage: str, config: Any) -> bool:
    """Whether `stage` ran to its end with exactly this configuration."""
    return _stage_config(run, stage) == to_plain(config) and run.read()["stages"][stage].get("ended") is not None


def _stage_config(run: Run, stage: str) -> Any:
    return run.read()["config"].get(stage) if run.exists() else None
