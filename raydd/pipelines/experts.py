"""`raydd train-experts`: expert trajectories for LD3M's MTT loss, each expert a unit of its own.

An expert does not depend on the others, nor on how many there are: a larger --count goes on where a smaller one ended.
An expert whose file is there and whose configuration fits is not trained again; another configuration is refused.
"""

import dataclasses
import functools
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydd.config import content_hash, to_plain
from raydd.data.source import Source, check_same_classes
from raydd.data.tensors import load_images
from raydd.errors import UserError
from raydd.keyed import smallest
from raydd.models.normalization import IMAGENET, Normalization
from raydd.models.registry import default_students, effective_norm, resolve_arch
from raydd.pipelines.job import check_stage, close_log, is_settled, open_teacher, opened
from raydd.pipelines.request import chosen_classes
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources
from raydd.store import events, filesystem
from raydd.store.holder import hold
from raydd.store.progress import start_unit, start_work
from raydd.store.run import Run
from raydd.store.trajectories import ExpertFacts, Experts, discard, has_expert, write_expert, write_index
from raydd.train.experts import ExpertRecipe, expert_net, measure_snapshots, train_expert

STAGE = "experts"
MEASURED = 1000  # images at most that snapshots are measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Which experts to train, on which source, and where their trajectories go."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Directory for the trajectories, at any path or URI.
    out: str
    # Network; None takes the literature's ConvNet for the size: convnet3 up to 32 px, 4 to 64, 5 to 128, else 6.
    arch: str | None = None
    # Working size in pixels; None takes the teacher's.
    size: int | None = None
    # Experts to train; more can be added later.
    count: int = 100
    # Epochs of each; its snapshots are 0 to this. LD3M reads max_start - 1 + M, 3 with its values.
    epochs: int = 3
    # Learning rate of SGD.
    lr: float = 0.01
    # Momentum of SGD.
    momentum: float = 0.0
    # Images per step.
    batch: int = 256
    # Channels of a ConvNet; None takes 128.
    width: int | None = None
    # Only these classes, by name, separated by commas; labels are then their positions among these.
    classes: str | None = None
    # Teacher whose normalization is taken: the one that the distillation is given. None takes ImageNet's.
    teacher: str | None = None
    # Seed of weights, order and augmentation.
    seed: int = 0
    # Train again over experts of another configuration.
    force: bool = False


@dataclasses.dataclass(frozen=True)
class ExpertUnit:
    """One expert: training, measuring, and the file that says it is done."""

    out: str
    data: str
    index: int
    recipe: ExpertRecipe
    facts: ExpertFacts

    @property
    def name(self) -> str:
        return f"{self.out}/{self.index}"

    @property
    def cost(self) -> float:
        return float(self.recipe.epochs)

    def is_done(self) -> bool:
        return has_expert(self.out, self.index, self.facts.config_hash)

    def run(self, context: Context) -> None:
        start = time.monotonic()
        start_unit(Run(self.out), str(self.index))
        how = {"normalization": Normalization(self.facts.mean, self.facts.std), "device": context.device}
        size, classes, split = self.facts.image_size, self.facts.classes, self.facts.measured_on
        snapshots = train_expert(*load_group(self.data, "train", size, classes), self.recipe, self.index, **how)
        test = load_group(self.data, split, size, classes, MEASURED)
        accuracy = measure_snapshots(snapshots, *test, self.recipe, **how)
        write_expert(self.out, self.index, snapshots, self.facts, accuracy)
        seconds = round(time.monotonic() - start, 3)
        events.append(Run(self.out), "expert_trained", name=str(self.index), accuracy=accuracy, seconds=seconds)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked request for experts."""

    out: str
    config: dict[str, Any]
    facts: ExpertFacts
    units: list[ExpertUnit]
    seed: int
    force: bool

    def is_done(self) -> bool:
        settled = not self.force and is_settled(Run(self.out), STAGE, self.config)
        return settled and all(unit.is_done() for unit in self.units)

    def begin(self) -> None:
        """Record the stage; remove what is to be trained again."""
        if self.force:
            discard(self.out)
            filesystem.remove_tree(Run(self.out).path("run.json"))
        Run(self.out).begin(STAGE, self.config, seed=self.seed)

    def end(self) -> None:
        close_log(Run(self.out))
        Run(self.out).end(STAGE)


def train(options: ExpertOptions, resources: Resources) -> Experts:
    """Train (or go on training) the experts of one directory; returns what is there."""
    return train_many([options], resources)[0]


def train_many(requests: list[ExpertOptions], resources: Resources) -> list[Experts]:
    """Train the experts of several directories (groups of classes, say); their units share one group of workers."""
    resources.check()
    prepared = [prepare(options) for options in requests]
    if todo := [item for item in prepared if not item.is_done()]:
        with hold(*(Run(item.out) for item in todo)):
            _run(todo, resources)
    return [write_index(item.out, item.facts) for item in prepared]


def _run(todo: list[Prepared], resources: Resources) -> None:
    """Train what is missing; whatever happens, the indices say what is there."""
    for item in todo:
        item.begin()
        left = sum(not unit.is_done() for unit in item.units)
        start_work(Run(item.out), STAGE, total=len(item.units), left=left)
    storage = filesystem.join(todo[0].out, "state", "train")
    try:
        units = [unit for item in todo for unit in item.units]
        run_units(units, resources, "experts", storage=storage, on_event=_record)
    finally:
        for item in todo:
            write_index(item.out, item.facts)
        filesystem.remove_tree(storage)
    for item in todo:
        item.end()


def _record(unit: ExpertUnit, event: str, facts: dict[str, Any]) -> None:
    events.append(Run(unit.out), event, name=str(unit.index), **facts)


def prepare(options: ExpertOptions) -> Prepared:
    """Check a request against its source, its teacher and its directory; nothing is written. Raises `UserError`."""
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    if options.size is not None and options.size < 1:
        raise UserError(f"--size {options.size}: must be at least 1; leave it out for the teacher's")
    source, out = opened(options.data, "train"), filesystem.absolute(options.out)
    size, normalization = _size_and_normalization(options, source)
    classes = tuple(source.classes[label] for label in chosen_classes(options.classes, source.classes))
    if len(classes) < 2:
        raise UserError(f"--classes {options.classes}: an expert tells classes apart; name at least 2")
    recipe = ExpertRecipe(
        arch=resolve_arch(options.arch or default_students(size)[0]),
        image_size=size,
        num_classes=len(classes),
        **{name: getattr(options, name) for name in ("epochs", "lr", "momentum", "batch", "width", "seed")},
    )
    recipe.check()
    net = expert_net(recipe)
    config = {"recipe": recipe, "source": source.fingerprint, "classes": classes, "normalization": normalization}
    _check_place(Run(out), config, options.force)
    facts = ExpertFacts(
        arch=recipe.arch,
        norm=effective_norm(recipe.arch, recipe.norm),
        width=recipe.width,
        num_classes=len(classes),
        image_size=size,
        classes=classes,
        mean=normalization.mean,
        std=normalization.std,
        epochs=recipe.epochs,
        seed=recipe.seed,
        names=tuple(net.names),
        shapes=tuple(net.shapes),
        measured_on=_measured_on(source, classes),
        config_hash=content_hash(config),
    )
    units = [ExpertUnit(out, source.uri, index, recipe, facts) for index in range(options.count)]
    return Prepared(out, to_plain(config), facts, units, options.seed, options.force)


def _size_and_normalization(options: ExpertOptions, source: Source) -> tuple[int, Normalization]:
    """As a distillation with the same teacher decides them."""
    if options.teacher is None:
        if options.size is None:
            raise UserError(
                "no --size and no --teacher to take it from: give the working size in pixels, e.g. --size 32"
            )
        return options.size, IMAGENET
    info = open_teacher(options.teacher, source, arch=None, rows=None, size=options.size).load().info
    return info.image_size, Normalization(tuple(info.mean), tuple(info.std))


def _check_place(run: Run, config: dict[str, Any], force: bool) -> None:
    if run.exists() and (others := run.read()["stages"].keys() - {STAGE}):
        raise UserError(f"{run.uri} is a run with a {min(others)} stage: give experts an --out of their own")
    check_stage(run, STAGE, config, force)


def _measured_on(source: Source, classes: tuple[str, ...]) -> str:
    """The part of the source that snapshots are measured on: `val` where it holds these classes, else `train`."""
    try:
        val = opened(source.uri, "val")
    except UserError:
        return "train"
    check_same_classes(source, val)
    return "val" if all(val.counts()[val.classes.index(name)] for name in classes) else "train"


@functools.lru_cache(maxsize=2)
def load_group(
    uri: str, split: str, size: int, classes: tuple[str, ...], limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, S, S] of some classes and their labels, positions in `classes`, int64 [N]; decoded once.

    At most `limit` images, a keyed sample.
    """
    source = opened(uri, split)
    place = np.full(len(source.classes), -1)
    place[[source.classes.index(name) for name in classes]] = np.arange(len(classes))
    index = source.index()
    keys = [key for key, label in zip(index["key"].to_pylist(), index["label"].to_pylist()) if place[label] >= 0]
    if limit is not None:
        keys = [keys[i] for i in smallest(keys, limit, "experts")]
    found = load_images(source, size, keys=keys)
    return found.images, torch.from_numpy(place)[found.labels]
