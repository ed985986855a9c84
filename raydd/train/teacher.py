"""`raydd train-teacher`: a converged teacher and, in a run of its own, an early one, with what their users must know.

InfoUtil (arXiv 2601.21296) labels small sets with a teacher of 10 epochs, trained at .001 on CIFAR and .01 elsewhere
(paper). The rest is not stated: `early_recipe` takes SGD .9, weight decay 1e-4, batch 256, a constant rate, resized
crops and flips, and a smaller batch on sources too small for 20 steps per epoch, where 256 would stay at chance (ours).

Written to the output directory: `teacher`, `early` and `epoch-N` for every epoch asked for (each .safetensors + .json),
and `resume-NAME.safetensors` while a run is under way. The same command continues a killed run, does nothing when all
is there, and refuses another recipe over an existing one unless forced. Images are held in memory as uint8, which suits
everything up to ImageNet's subsets; for ImageNet-1K use torchvision's published weights.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydd.config import content_hash, difference, to_plain
from raydd.errors import UserError
from raydd.models.audit import measure_teacher
from raydd.models.checkpoint import INFO, ModelInfo, has_checkpoint, read_info, save_checkpoint
from raydd.models.normalization import Normalization, measure
from raydd.models.registry import build_model, effective_norm, resolve_arch
from raydd.models.teacher import CONVERGED, EARLY, as_teacher
from raydd.store import filesystem
from raydd.train.classifier import ClassifierTraining, Optimization
from raydd.train.resume import restore_training, save_training

Progress = Callable[[dict], None]
CIFAR_COUNT = 20_000  # training images from which a set of up to 32 px counts as CIFAR-sized


@dataclass(frozen=True)
class TeacherRecipe:
    """A complete recipe; None takes the default of the network or of the image size."""

    arch: str
    image_size: int
    epochs: int = 60
    early_epochs: int = 10  # 0: no early teacher
    batch: int = 128
    lr: float | None = None  # .02 for ConvNets, .01 for networks without normalization layers, .05 for the rest (ours)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    augment: str | None = None  # pad_crop up to 32 px, else resized_crop
    flip: bool = True  # switch off where mirrored images are another class, as with digits
    norm: str | None = None
    width: int | None = None
    seed: int = 0
    precision: str = "auto"

    def optimization(self) -> Optimization:
        """The same with every None replaced."""
        names = {f.name for f in dataclasses.fields(Optimization)} & {f.name for f in dataclasses.fields(self)}
        filled = {
            "lr": _peak_rate(self.arch, self.norm) if self.lr is None else self.lr,
            "augment": self.augment or ("pad_crop" if self.image_size <= 32 else "resized_crop"),
        }
        return Optimization(**({name: getattr(self, name) for name in names} | filled))


def early_recipe(recipe: TeacherRecipe, num_images: int) -> TeacherRecipe:
    """InfoUtil's early teacher for the same network: `recipe.early_epochs` epochs at a constant rate."""
    cifar = recipe.image_size <= 32 and num_images >= CIFAR_COUNT
    batch = 256
    while batch > 8 and num_images < 20 * batch:
        batch //= 2
    return dataclasses.replace(
        recipe,
        epochs=recipe.early_epochs,
        batch=batch,
        lr=0.001 if cifar else 0.01,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="constant",
        augment="resized_crop",
    )


def train_teacher(
    images: Tensor,
    labels: Tensor,
    val_images: Tensor,
    val_labels: Tensor,
    classes: Sequence[str],
    recipe: TeacherRecipe,
    out: str,
    *,
    normalization: Normalization | None = None,
    source: str | None = None,
    val_source: str | None = None,
    keep_epochs: Sequence[int] = (),
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> ModelInfo:
    """Train the early and the converged teacher on uint8 [N, 3, S, S] and int64 [N]; returns the converged one's facts.

    `normalization` is measured on `images` if not given; `source` is the fingerprint of the training source and
    `val_source` names the validation source; `keep_epochs` are kept as checkpoints `epoch-N` of the main run.
    `progress` gets one dict per epoch (model, epoch, epochs, loss, seconds, images_per_second) and one per finished
    model (model, top1, label_entropy). Raises `UserError` for data that do not fit each other or the recipe, and for
    an output directory that holds another recipe's teacher.
    """
    recipe = dataclasses.replace(recipe, arch=resolve_arch(recipe.arch))
    _check_recipe(recipe, keep_epochs)
    for pixels, targets in ((images, labels), (val_images, val_labels)):
        _check(pixels, targets, len(classes), recipe.image_size)
    run = _Run(
        images,
        labels,
        val_images,
        val_labels,
        tuple(classes),
        normalization or measure(images),
        source,
        val_source,
        out,
        device,
        force,
        progress,
    )
    if recipe.early_epochs:
        run.train(EARLY, early_recipe(recipe, len(images)))
    return run.train(CONVERGED, recipe, keep_epochs)


@dataclass(frozen=True)
class _Run:
    images: Tensor
    labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    classes: tuple[str, ...]
    normalization: Normalization
    source: str | None
    val_source: str | None
    out: str
    device: str
    force: bool
    progress: Progress | None

    def train(self, name: str, recipe: TeacherRecipe, keep_epochs: Sequence[int] = ()) -> ModelInfo:
        """Train, measure and store one teacher, or return the facts of the one that is there."""
        identity = self._identity(recipe)
        if not self.force and has_checkpoint(self.out, name):
            return self._existing(name, identity)
        training = ClassifierTraining(
            self._fresh(recipe), recipe.optimization(), self.normalization, self.device, self.images, self.labels
        )
        resume = filesystem.join(self.out, f"resume-{name}.safetensors")
        if self.force:
            filesystem.remove_tree(resume)
        restore_training(resume, training, content_hash(identity))
        for facts in training.epochs():
            if training.epoch in keep_epochs:
                self._store(f"epoch-{training.epoch}", training, recipe)
            save_training(resume, training, content_hash(identity))
            self._tell(name, facts)
        info = self._store(name, training, recipe)
        filesystem.remove_tree(resume)
        self._tell(name, {"top1": info.top1, "label_entropy": info.label_entropy})
        return info

    def _identity(self, recipe: TeacherRecipe) -> dict[str, Any]:
        origin = {"source": self.source, "images": len(self.images), "classes": self.classes}
        return to_plain(dataclasses.asdict(recipe) | origin)

    def _existing(self, name: str, identity: dict[str, Any]) -> ModelInfo:
        info = read_info(filesystem.join(self.out, name + INFO))
        if changes := difference(info.recipe, identity):
            raise UserError(
                f"{self.out} holds a teacher {name!r} of another recipe ({'; '.join(changes[:3])}): "
                "choose another --out, or replace it with --force"
            )
        return info

    def _fresh(self, recipe: TeacherRecipe) -> nn.Module:
        return build_model(
            recipe.arch,
            num_classes=len(self.classes),
            image_size=recipe.image_size,
            norm=recipe.norm,
            width=recipe.width,
            seed=recipe.seed,
        )

    def _store(self, name: str, training: ClassifierTraining, recipe: TeacherRecipe) -> ModelInfo:
        info = ModelInfo(
            arch=recipe.arch,
            image_size=recipe.image_size,
            outputs=len(self.classes),
            classes=self.classes,
            norm=effective_norm(recipe.arch, recipe.norm),
            width=recipe.width,
            mean=self.normalization.mean,
            std=self.normalization.std,
            epoch=training.epoch,
            early=name != CONVERGED,
            val_source=self.val_source,
            val_count=len(self.val_images),
            source=self.source,
            recipe=self._identity(recipe),
        )
        model = copy.deepcopy(training.model)  # measuring freezes it
        report = measure_teacher(as_teacher(model, info, self.device), (self.val_images, self.val_labels))
        info = dataclasses.replace(info, top1=report.top1, label_entropy=report.entropy)
        return save_checkpoint(self.out, name, model, info)

    def _tell(self, name: str, facts: dict[str, Any]) -> None:
        if self.progress is not None:
            self.progress({"model": name} | facts)


def _peak_rate(arch: str, norm: str | None) -> float:
    if effective_norm(arch, norm) == "none" or arch == "vit_dd":
        return 0.01
    return 0.02 if arch.startswith("convnet") else 0.05


def _check_recipe(recipe: TeacherRecipe, keep_epochs: Sequence[int]) -> None:
    if recipe.epochs < 1 or recipe.batch < 1:
        raise UserError(f"--epochs {recipe.epochs} --batch {recipe.batch}: both must be at least 1; try --epochs 60")
    if missed := [epoch for epoch in keep_epochs if not 1 <= epoch <= recipe.epochs]:
        raise UserError(f"cannot keep epoch {missed[0]} of {recipe.epochs}: choose epochs from 1 to {recipe.epochs}")


def _check(images: Tensor, labels: Tensor, num_classes: int, image_size: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(labels):
        raise ValueError(
            f"expected uint8 [N, 3, S, S] and N labels, got {images.dtype} {list(images.shape)}, {len(labels)}"
        )
    if len(images) < 2:
        raise UserError(f"{len(images)} images are too few to train or measure a teacher: give at least 2 of each")
    if set(images.shape[2:]) != {image_size}:
        raise UserError(
            f"images have {list(images.shape[2:])} px but the recipe works at {image_size} px: use one size"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()} but there are {num_classes} class names: "
            "give one name per label"
        )
