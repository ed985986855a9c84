"""One expert of MTT (arXiv 2203.11932): a network's parameters before training on real images and after each epoch.

The recipe is ld3m.md, section 6: SGD at .01 without momentum or decay, batches of 256, DSA with one group per batch and
parameters per image, instance norm, and no more epochs than LD3M reads (max_start - 1 + M, its values give 3). The
first snapshot is rounded to float16 *before* training, so that it is stored exactly.

An expert is a function of (recipe, index): initialization, order and augmentation are keyed by (seed, "expert", index).
Ours: parameters are one flat vector from beginning to end, which makes a snapshot a copy and a step one line; dropout
is off, because a trajectory is followed by one function of the parameters; the last, smaller batch of an epoch counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.augment.dsa import apply_dsa, draw_dsa
from raydd.errors import UserError
from raydd.keyed import hash64, numpy_rng
from raydd.models.flat import FlatNet
from raydd.models.normalization import Normalization
from raydd.models.registry import build_model
from raydd.train.batches import RESIDENT_BYTES

TEST_BATCH = 256


@dataclass(frozen=True)
class ExpertRecipe:
    """A complete recipe: every expert of it differs from the others by its index only."""

    arch: str
    image_size: int
    num_classes: int
    epochs: int = 3
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    norm: str = "instance"
    width: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise `UserError` for a number that is out of range."""
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if not self.lr > 0:
            raise UserError(f"--lr {self.lr}: must be positive, e.g. 0.01")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum}: must be at least 0 and below 1")


def expert_net(recipe: ExpertRecipe, index: int = 0) -> FlatNet:
    """The network of expert `index` before training, in evaluation mode, not yet rounded.

    Raises `UserError` for a network that is unknown, does not fit the size, or has other state than its parameters.
    """
    net = build_model(
        recipe.arch,
        num_classes=recipe.num_classes,
        image_size=recipe.image_size,
        norm=recipe.norm,
        width=recipe.width,
        seed=hash64(recipe.seed, "expert", index),
    )
    try:
        return FlatNet(net.eval())
    except ValueError as error:
        raise UserError(f"no trajectories of {recipe.arch}: {error}; choose a ConvNet, e.g. --arch convnet3") from error


def train_expert(
    images: Tensor,
    labels: Tensor,
    recipe: ExpertRecipe,
    index: int,
    *,
    normalization: Normalization,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Train on uint8 [N, 3, S, S] and int64 [N]; returns the snapshots float32 [epochs + 1, P] on the CPU.

    Raises `UserError` if the training diverges.
    """
    net = expert_net(recipe, index)
    if images.numel() <= RESIDENT_BYTES:
        images = images.to(device)
    labels = labels.to(device)
    flat = net.parameters().half().float().to(device).requires_grad_()
    optimizer = torch.optim.SGD([flat], recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    snapshots = [_copy(flat)]
    for epoch in range(recipe.epochs):
        for step, rows in enumerate(_batches(len(labels), recipe, index, epoch)):
            batch = normalization.apply(images[rows.to(images.device)].to(device))
            dsa = draw_dsa(numpy_rng(recipe.seed, "expert", index, epoch, step), len(rows))
            logits = net(flat, apply_dsa(batch, dsa))
            (flat.grad,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows.to(device)]), flat)
            optimizer.step()
        snapshots.append(_copy(flat))
        if not snapshots[-1].isfinite().all():
            raise UserError(f"expert {index} diverged in epoch {epoch + 1} at --lr {recipe.lr}: choose a smaller --lr")
    return torch.stack(snapshots)


@torch.no_grad()
def measure_snapshots(
    snapshots: Tensor,
    images: Tensor,
    labels: Tensor,
    recipe: ExpertRecipe,
    *,
    normalization: Normalization,
    device: str | torch.device = "cpu",
) -> list[float]:
    """Accuracy in [0, 1] of each snapshot [E + 1, P] on uint8 [N, 3, S, S] and int64 [N], without augmentation."""
    net, hits = expert_net(recipe), torch.zeros(len(snapshots), dtype=torch.int64)
    flats = snapshots.to(device)
    for pixels, targets in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH)):
        batch, targets = normalization.apply(pixels.to(device)), targets.to(device)
        hits += torch.stack([(net(flat, batch).argmax(1) == targets).sum() for flat in flats]).cpu()
    return (hits / len(labels)).tolist()


def _batches(count: int, recipe: ExpertRecipe, index: int, epoch: int) -> tuple[Tensor, ...]:
    """The rows of an epoch's batches: slices of a fresh keyed permutation."""
    # Sorting uniforms: only those are promised to stay the same between versions of NumPy.
    uniform = numpy_rng(recipe.seed, "expert", index, "order", epoch).random(count)
    return torch.from_numpy(np.argsort(uniform, kind="stable")).split(recipe.batch)


def _copy(flat: Tensor) -> Tensor:
    # On a CPU, detaching and moving would give the live parameters, and every snapshot would end up equal.
    return flat.detach().to("cpu", copy=True)
