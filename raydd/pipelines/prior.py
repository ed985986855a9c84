"""`raydd train-prior`: decode a source once into memory, then train a diffusion prior on it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.errors import UserError
from raydd.models.prior.writer import read_facts
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources
from raydd.store import filesystem
from raydd.store.holder import hold
from raydd.store.run import Run
from raydd.train.prior import discard, train_prior
from raydd.train.prior_recipe import PriorRecipe, preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Which diffusion prior to train, on which source, and where its pipeline directory goes."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Directory for the diffusers pipeline.
    out: str
    # Network, schedule and budget: tiny (digits), small (MNIST on a CPU), cifar (a GPU), dit-s, dit-b (latents).
    preset: str = "tiny"
    # Working size in pixels; None takes the preset's.
    size: int | None = None
    # Directory, URI or hub id of an autoencoder whose latents are learned; None learns pixels. dit-s, dit-b need one.
    autoencoder: str | None = None
    # Optimizer steps; None takes the preset's.
    steps: int | None = None
    # Images per step; None takes the preset's.
    batch: int | None = None
    # Peak learning rate; None takes the preset's.
    lr: float | None = None
    # Whether training may mirror images; None takes the preset's (tiny, small: no, for digits; the others: yes).
    flip: bool | None = None
    # auto | bf16 | fp32; auto takes bfloat16 where the hardware has it.
    precision: str | None = None
    # Seed of weights, order, levels and noise.
    seed: int = 0
    # Workers that train together, one GPU each (or `threads` CPU threads); batch must divide by it.
    ddp: int = 1
    # Train again over another recipe's prior.
    force: bool = False

    def recipe(self) -> PriorRecipe:
        """The preset with every given option in place; `latent` follows the autoencoder."""
        names = ("steps", "batch", "lr", "flip", "precision", "seed")
        recipe = preset(self.preset, image_size=self.size, **{name: getattr(self, name) for name in names})
        if recipe.latent and not self.autoencoder:
            raise UserError(
                f"--preset {self.preset} learns latents: give --autoencoder DIR (or a hub id), or another preset"
            )
        return dataclasses.replace(recipe, latent=bool(self.autoencoder))


@dataclasses.dataclass(frozen=True)
class PriorUnit:
    """The training as one unit: alone on one worker, or as a process group (`raydd.runtime.ray_ddp`)."""

    options: PriorOptions

    name = "prior"
    cost = 1.0

    def is_done(self) -> bool:
        return read_facts(self.options.out) is not None

    def run(self, context: Context) -> None:
        train_here(self.options, context.device, context.say)

    def train(self, device: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
        return train_here(self.options, device, rank=rank, world=world)

    def commit(self, result: dict[str, Any]) -> None:
        """Nothing: rank 0 has written the pipeline, `model_index.json` last."""


def train(options: PriorOptions, resources: Resources) -> dict[str, Any]:
    """Train (or go on training) a prior; returns the facts of its raydd.json."""
    options = dataclasses.replace(options, out=filesystem.absolute(options.out))
    options.recipe()
    open_source(options.data, "train")
    if options.autoencoder and filesystem.exists(options.autoencoder):
        # Workers may run in another directory; a hub id is no path.
        options = dataclasses.replace(options, autoencoder=filesystem.absolute(options.autoencoder))
    unit = PriorUnit(options)
    if unit.is_done() and not options.force:
        # Compares the recipe with the one that is there, and refuses another.
        return train_here(options, "cpu")
    storage = filesystem.join(options.out, "state", "train")
    with hold(Run(options.out)):
        if options.force:
            discard(options.out)
        _run(unit, resources, storage)
        filesystem.remove_tree(storage)
    return read_facts(options.out)


def _run(unit: PriorUnit, resources: Resources, storage: str) -> None:
    if unit.options.ddp > 1:
        from raydd.runtime.ray_ddp import train_together

        train_together(unit, unit.options.ddp, resources, storage, "prior")
    else:
        run_units([unit], resources, "prior", storage=storage)


def train_here(
    options: PriorOptions, device: str, say: Callable[[str], None] = print, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Train in this process; `say` is given a line now and then."""
    recipe = options.recipe()
    source = open_source(options.data, "train")
    data = load_images(source, recipe.image_size)
    return train_prior(
        data.images,
        data.labels,
        source.classes,
        recipe,
        options.out,
        autoencoder=options.autoencoder,
        source=source.fingerprint,
        device=device,
        rank=rank,
        world=world,
        progress=lambda facts: say(line_of(facts)),
    )


def line_of(facts: dict[str, Any]) -> str:
    """One line about a stretch of training."""
    return (
        f"prior: step {facts['step']}/{facts['steps']}, loss {facts['loss']:.4f}, "
        f"{facts['images_per_second']:.0f} images/s"
    )
