"""What a person asks of a distillation, and the checked job that it becomes."""

import dataclasses
from typing import Literal

from raydd.errors import UserError, choose
from raydd.models.normalization import IMAGENET
from raydd.pipelines.job import Job, PriorSpec, absolute_if_there, open_teacher, opened
from raydd.store import filesystem
from raydd.store.plain import parse_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """What to distill, from where, to where."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Run directory, at any path or URI.
    out: str
    # Images per class.
    ipc: int = 10
    # Teacher: directory of `train-teacher`, `NAME:pretrained` of torchvision, or a checkpoint file.
    teacher: str | None = None
    # Architecture of a checkpoint file that has no JSON beside it.
    teacher_arch: str | None = None
    # Output rows to keep of a teacher with more classes, in the order of the source's classes.
    teacher_rows: tuple[int, ...] | None = None
    # Diffusion prior: directory of `train-prior`, or a pipeline that diffusers loads (local or a hub's name).
    prior: str | None = None
    # JSON file {source class: the prior's class or label}, where the prior's class names are not the source's.
    class_map: str | None = None
    # Working size in pixels; None takes the teacher's, else the prior's.
    size: int | None = None
    # Seed of every random draw.
    seed: int = 0
    # Only these classes, by name, separated by commas.
    classes: str | None = None
    # Folder of score tables that several runs share; None keeps the table in the run.
    scores: str | None = None
    # Images per forward of the teacher; part of the result's low bits.
    batch: int = 64
    # Arithmetic of the Shapley games.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Redo what is there (all of it, or the classes named).
    force: bool = False


def open_job(options: DistillOptions) -> Job:
    """Open and check the source and the teacher of a request; nothing is written. Raises `UserError`."""
    for name in ("size", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1; leave it out for the default")
    source = opened(options.data, "train")
    spec = teacher = None
    size = options.size
    if options.teacher is not None:
        spec = open_teacher(
            options.teacher, source, arch=options.teacher_arch, rows=options.teacher_rows, size=options.size
        )
        teacher = spec.load()
        size = size or teacher.info.image_size
    prior = prior_hash = None
    if options.prior is not None:
        prior = PriorSpec(
            name=absolute_if_there(options.prior), classes=source.classes, class_map=read_class_map(options.class_map)
        )
        loaded = prior.load()
        prior_hash, size = loaded.hash, size or loaded.image_size
    if size is None:
        raise UserError("no --size and no --teacher to take it from: give the working size in pixels, e.g. --size 32")
    mean, std = (teacher.info.mean, teacher.info.std) if teacher else (IMAGENET.mean, IMAGENET.std)
    return Job(
        data=source.uri,
        out=filesystem.absolute(options.out),
        ipc=options.ipc,
        seed=options.seed,
        size=size,
        classes=source.classes,
        fingerprint=source.fingerprint,
        kind=source.kind,
        teacher=spec,
        teacher_hash=teacher.hash if teacher else None,
        normalization={"mean": list(mean), "std": list(std)},
        batch=options.batch,
        precision=options.precision,
        prior=prior,
        prior_hash=prior_hash,
    )


def read_class_map(uri: str | None) -> tuple[tuple[str, str | int], ...] | None:
    """The pairs of a JSON object {source class: class or label of the prior}; `UserError` for anything else."""
    if uri is None:
        return None
    try:
        pairs = parse_json(filesystem.read_bytes(uri))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"--class-map {uri}: {error}; give a JSON file {{source class: prior class or label}}"
        ) from error
    if not isinstance(pairs, dict) or not all(isinstance(value, str | int) for value in pairs.values()):
        raise UserError(f"--class-map {uri}: give a JSON object {{source class: prior class or label}}")
    return tuple(sorted(pairs.items()))


def chosen_classes(names: str | None, classes: tuple[str, ...]) -> list[int]:
    """Labels of the classes named in `--classes`; all without it."""
    if names is None:
        return list(range(len(classes)))
    return sorted({classes.index(choose("class", name.strip(), classes)) for name in names.split(",")})
