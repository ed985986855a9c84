"""What `raydd evaluate` is asked for, and what is refused before anything is trained."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from raydd.data.source import Source, check_same_classes, open_source, source_exists
from raydd.errors import UserError
from raydd.evaluate import overlap
from raydd.evaluate.record import FULL
from raydd.models.registry import check_fits, default_students, resolve_arch
from raydd.pipelines.students import resolve_protocol
from raydd.runtime.work import Resources
from raydd.store import distilled
from raydd.store.run import Run
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


def recipes(manifest: dict[str, Any], options: RecipeOptions) -> Iterable[tuple[str, Protocol]]:
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
    """Raise `UserError` if classes of the set are missing; `full` holds none, it stands for its source."""
    if manifest["method"] != FULL:
        distilled.check_complete(run, manifest)


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
