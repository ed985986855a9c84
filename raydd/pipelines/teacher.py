"""`raydd train-teacher`: decode a source once into memory, then train the early and the converged teacher on it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from raydd.data.source import Source, check_same_classes, open_source, open_validation
from raydd.data.tensors import load_images
from raydd.evaluate import overlap
from raydd.models.checkpoint import INFO, ModelInfo, has_checkpoint, read_info
from raydd.models.registry import check_fits
from raydd.models.teacher import CONVERGED
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources
from raydd.store import filesystem
from raydd.store.holder import hold
from raydd.store.run import Run
from raydd.train.teacher import TeacherRecipe, train_teacher

# What a person calls the checkpoints.
MODELS = {CONVERGED: "converged"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Which classifier to train, on which source, and where its checkpoints go."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Directory for the checkpoints.
    out: str
    # Validation source; None takes the source's own val part.
    val: str | None = None
    # Network: convnet3 ... convnet6, resnet18, resnet18_cifar, resnetap10, cifar_resnet20, or a torchvision name.
    arch: str = "convnet3"
    # Working size in pixels.
    size: int = 32
    # Epochs of the converged teacher.
    epochs: int = 60
    # Epochs of the early teacher that labels small sets (InfoUtil: 10); 0 trains none.
    early_epochs: int = 10
    # Images per step of the converged teacher.
    batch: int = 128
    # Peak learning rate; None takes the network's.
    lr: float | None = None
    # Channels of a ConvNet; None takes 128.
    width: int | None = None
    # Whether training may mirror images.
    flip: bool = True
    # Seed of weights, order and augmentation.
    seed: int = 0
    # Epochs of the main run to keep as checkpoints `epoch-N` besides the last.
    keep_epochs: tuple[int, ...] = ()
    # Train again over another recipe's teacher.
    force: bool = False

    def recipe(self) -> TeacherRecipe:
        shared = {f.name for f in dataclasses.fields(TeacherRecipe)} & {f.name for f in dataclasses.fields(self)}
        return TeacherRecipe(image_size=self.size, **{name: getattr(self, name) for name in shared})


@dataclasses.dataclass(frozen=True)
class TeacherUnit:
    """The training as one unit, so that it runs on a worker with a GPU when the driver has none."""

    options: TeacherOptions

    name = "teacher"
    cost = 1.0

    def is_done(self) -> bool:
        return has_checkpoint(self.options.out, CONVERGED)

    def run(self, context: Context) -> None:
        train_here(self.options, context.device, context.say)


def train(options: TeacherOptions, resources: Resources) -> ModelInfo:
    """Train (or go on training) a teacher; returns what is known about the converged one."""
    options = dataclasses.replace(options, out=filesystem.absolute(options.out))
    source, _ = open_parts(options)
    recipe = options.recipe()
    check_fits(recipe.arch, num_classes=len(source.classes), image_size=recipe.image_size, norm=recipe.norm)
    info = filesystem.join(options.out, CONVERGED + INFO)
    unit = TeacherUnit(options)
    if unit.is_done() and not options.force:
        # Compares the recipe with the one that is there, and refuses another.
        return train_here(options, "cpu")
    storage = filesystem.join(options.out, "state", "train")
    with hold(Run(options.out)):
        if options.force:
            filesystem.remove_tree(info)
        run_units([unit], resources, "teacher", storage=storage)
        filesystem.remove_tree(storage)
    return read_info(info)


def open_parts(options: TeacherOptions) -> tuple[Source, Source]:
    """The training and validation sources, checked against each other."""
    source, val = open_source(options.data, "train"), open_validation(options.val or options.data)
    check_same_classes(source, val)
    overlap.check_sources(source.root, val.root)
    return source, val


def train_here(options: TeacherOptions, device: str, say: Callable[[str], None] = print) -> ModelInfo:
    """Train in this process; `say` is given one line per epoch and per finished model."""
    source, val = open_parts(options)
    train, test = load_images(source, options.size), load_images(val, options.size)
    return train_teacher(
        train.images,
        train.labels,
        test.images,
        test.labels,
        source.classes,
        options.recipe(),
        options.out,
        source=source.fingerprint,
        val_source=val.uri,
        keep_epochs=options.keep_epochs,
        device=device,
        force=options.force,
        progress=lambda facts: say(line_of(facts)),
    )


def line_of(facts: dict[str, Any]) -> str:
    """One line about an epoch or about a finished model."""
    name = MODELS.get(facts["model"], facts["model"])
    if "top1" in facts:
        return f"{name} teacher: top-1 {100 * facts['top1']:.1f} %"
    return (
        f"{name} teacher: epoch {facts['epoch']}/{facts['epochs']}, loss {facts['loss']:.3f}, "
        f"{facts['images_per_second']:.0f} images/s"
    )
