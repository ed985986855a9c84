"""`raydd train-prior`: a class-conditional diffusion prior from scratch, in pixels or over a given autoencoder.

Written to the output directory: a diffusers pipeline (`raydd.models.prior.writer`) with the averaged weights,
`samples/step-N.png` while it trains (a column per class, DDIM with 25 steps), and `resume.safetensors` until it is
done. The same call continues a killed run, does nothing when all is there, and refuses another recipe over an
existing prior. Images are held in memory as uint8, latents as float16.

A source whose images are all gray is learned in one channel, which decodes to three equal ones (ours).
"""

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from raydd.config import content_hash, difference, to_plain
from raydd.errors import UserError
from raydd.models.prior.autoencoder import Latents, Pixels, Space
from raydd.models.prior.folder import INDEX, OURS
from raydd.models.prior.networks import build_denoiser
from raydd.models.prior.opened import OpenedPrior
from raydd.models.prior.pipeline import load_autoencoder
from raydd.models.prior.schedule import read_table
from raydd.models.prior.step import sample
from raydd.models.prior.writer import PARTS, read_facts, write_pipeline
from raydd.store import filesystem
from raydd.train.denoiser import DenoiserTraining, TrainingLatents
from raydd.train.prior_recipe import PriorRecipe
from raydd.train.resume import restore_training, save_training

Progress = Callable[[dict[str, Any]], None]
RESUME = "resume.safetensors"
SAVE_S = 60.0
REPORTS, GRIDS = 40, 6  # per training, about
GRID_CLASSES, GRID_ROWS, GRID_STEPS = 10, 4, 25
ENCODE_BATCH = 64


def train_prior(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    recipe: PriorRecipe,
    out: str,
    *,
    autoencoder: str | None = None,
    source: str | None = None,
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on uint8 [N,3,S,S] and int64 [N], write the pipeline, and return the facts of its raydd.json.

    `source` is the fingerprint of the training source. `progress` gets one dict (step, steps, loss, seconds,
    images_per_second) now and then. With `world` > 1 as one rank of an initialized process group; rank 0 writes. Raises
    `UserError` for data that do not fit the recipe, a training that diverges, and another recipe's prior in `out`.
    """
    recipe.check()
    _check(images, labels, len(classes), recipe)
    space = load_autoencoder(autoencoder, device) if autoencoder else None
    identity = to_plain(dataclasses.asdict(recipe)) | {
        "source": source,
        "images": len(images),
        "classes": list(classes),
        "autoencoder": space and space.hash,
    }
    if (known := read_facts(out)) is not None:
        return _existing(known, identity, out)
    data = make_latents(images, labels, space, recipe, device)
    channels, size = data.shape[0], data.shape[-1]
    net = build_denoiser(recipe.shape, channels=channels, size=size, num_classes=len(classes), seed=recipe.seed)
    training = DenoiserTraining(net, recipe, data, len(classes), device, rank, world)
    resume = filesystem.join(out, RESUME)
    restore_training(resume, training, content_hash(identity))
    stretch = _run(training, space or Pixels(channels), resume, content_hash(identity), out, progress)
    facts = {"image_size": recipe.image_size, "loss": stretch.get("loss"), "source": source, "recipe": identity}
    if rank == 0:
        autoencoder_net = space and space.net.cpu()
        write_pipeline(
            out,
            training.averaged().cpu(),
            recipe.scheduler(),
            autoencoder=autoencoder_net,
            classes=classes,
            facts=facts,
        )
        filesystem.remove_tree(resume)
    return facts


def discard(out: str) -> None:
    """Remove a prior, finished or not, so that another can be trained in its place."""
    for name in (INDEX, OURS, RESUME, "samples", *PARTS):
        filesystem.remove_tree(filesystem.join(out, name))


@torch.no_grad()
def make_latents(
    images: Tensor, labels: Tensor, space: Latents | None, recipe: PriorRecipe, device: str
) -> TrainingLatents:
    """What is learned from: the pixels (one channel if all are gray), or fp16 moments, also of the mirrored images."""
    if space is None:
        gray = all(torch.equal(part[:, :1].expand_as(part), part) for part in images.split(1024))
        return TrainingLatents(images[:, :1].contiguous() if gray else images, None, labels)
    mirrored = _moments(images, space, device, mirror=True) if recipe.flip else None
    return TrainingLatents(*_moments(images, space, device), labels, mirrored)


def draw_grid(training: DenoiserTraining, space: Space) -> bytes:
    """PNG of samples of the averaged weights, a column per class (the first ten); the same noises every time."""
    recipe, classes = training.recipe, min(training.num_classes, GRID_CLASSES)
    prior = OpenedPrior(
        training.averaged(),
        space,
        read_table(recipe.scheduler(), pixels=space.factor == 1),
        latent_size=training.data.shape[-1],
        labels=range(training.num_classes),
        null=training.num_classes,
        num_classes=training.num_classes,
        device=str(training.device),
    )
    labels = torch.arange(classes).repeat(GRID_ROWS)
    keys = [("grid", recipe.seed, i) for i in range(len(labels))]
    latents = sample(prior, labels, keys, steps=GRID_STEPS, guidance=recipe.sample_guidance, eta=0.0)
    pixels = prior.decode(latents).cpu().unflatten(0, (GRID_ROWS, classes)).permute(0, 3, 1, 4, 2)
    sink = io.BytesIO()
    Image.fromarray(pixels.flatten(0, 1).flatten(1, 2).numpy()).save(sink, "PNG")
    return sink.getvalue()


def _run(
    training: DenoiserTraining, space: Space, resume: str, identity: str, out: str, progress: Progress | None
) -> dict[str, Any]:
    """Train to the end; report, save and draw on rank 0 on the way."""
    steps, facts, saved = training.recipe.steps, {}, time.monotonic()
    report, grid = max(1, steps // REPORTS), max(25, steps // GRIDS)
    while training.epoch < steps:
        before = training.epoch
        facts = training.run(min(steps, before + report - before % report))
        if training.rank:
            continue
        if progress is not None:
            progress(facts)
        if training.epoch // grid > before // grid or training.epoch == steps:
            filesystem.write_atomic(
                filesystem.join(out, f"samples/step-{training.epoch:07d}.png"), draw_grid(training, space)
            )
        if time.monotonic() - saved > SAVE_S or training.epoch == steps:
            save_training(resume, training, identity)
            saved = time.monotonic()
    return facts


def _moments(images: Tensor, space: Latents, device: str, mirror: bool = False) -> tuple[Tensor, Tensor | None]:
    means, stds = [], []
    for part in images.split(ENCODE_BATCH):
        mean, std = space.moments((part.flip(-1) if mirror else part).to(device))
        means.append(mean.half().cpu())
        stds.append(None if std is None else std.half().cpu())
    return torch.cat(means), None if stds[0] is None else torch.cat(stds)


def _existing(known: dict[str, Any], identity: dict[str, Any], out: str) -> dict[str, Any]:
    if changes := difference(known.get("recipe"), identity):
        raise UserError(
            f"{out} holds a prior of another recipe ({'; '.join(changes[:3])}): "
            "choose another --out, or replace it with --force"
        )
    return known


def _check(images: Tensor, labels: Tensor, num_classes: int, recipe: PriorRecipe) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(labels):
        raise ValueError(
            f"expected uint8 [N,3,S,S] and N labels, got {images.dtype} {list(images.shape)}, {len(labels)}"
        )
    if set(images.shape[2:]) != {recipe.image_size}:
        raise UserError(f"images have {list(images.shape[2:])} px but the recipe works at {recipe.image_size} px")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"labels run from {labels.min()} to {labels.max()} but there are {num_classes} class names")
