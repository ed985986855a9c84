"""Batches of augmented views: which images, which augmentation, as a function of (seed, step) alone.

One loop serves the student and the writer of stored labels (`raydd.evaluate.views`), so both see the same views.
Batch i of epoch e is a slice of that epoch's keyed permutation; per-image parameters come from `augment.draws`, what a
batch shares (CutMix, the DSA group of a step) from a generator keyed by (seed, epoch, step). With several processes
each one builds only its slice of the batch, from the same draws.

Decision (ours): when an epoch would end on a single image, that batch takes one from its neighbor, because batch norm
cannot train on one image; the number of steps stays ceil(N / batch).
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from raydd.augment import autoaugment, color, dsa, geometry, mix
from raydd.augment.draws import Draws
from raydd.augment.geometry import View
from raydd.train.protocol import Augmentation, Protocol
from raydd.train.sets import TrainSet

# Sets up to this many bytes are kept on the training device.
RESIDENT_BYTES = 4 << 30


class Normalizer(Interface):
    """What is needed of `raydd.models.normalization.Normalization`."""

    def apply(self, images: Tensor) -> Tensor:
        """Normalize uint8, or float in [0, 1], images [B, 3, H, W]."""


@dataclass(frozen=True)
class Batch:
    """The views one process trains on in one step, B of the `total` views of the step.

    `rows` int64 [B]: rows of the training set; `images` float32 [B, 3, S, S]: normalized, mixed; `view`: geometry of
    the rows; with CutMix `partners` int64 [B], `partner_view` and `box`: the box shows the partner's view.
    `weight` is 0 when this process has no view of its own in a short batch and only keeps step with the others.
    """

    epoch: int
    rows: np.ndarray
    images: Tensor
    view: View
    partners: np.ndarray | None = None
    partner_view: View | None = None
    box: mix.Box | None = None
    total: int = 0
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)


def batch_bounds(count: int, batch: int) -> list[int]:
    """Start of each batch of an epoch, and the end; no batch of one image where a neighbor can spare one."""
    bounds = [*range(0, count, batch), count]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1 and batch > 2:
        bounds[-2] -= 1
    return bounds


class Batches:
    """All steps of a training run over `train`, addressed by number."""

    def __init__(
        self,
        train: TrainSet,
        protocol: Protocol,
        seed: int,
        normalization: Normalizer,
        *,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
    ):
        self.train, self.augmentation, self.normalization = train, protocol.augmentation, normalization
        self.whole = None if train.whole is None else train.whole.cpu().numpy()
        self.draws, self.device, self.rank, self.world = Draws(seed, len(train)), torch.device(device), rank, world
        self.bounds = batch_bounds(len(train), min(protocol.batch, len(train)))
        resident = train.images.numel() <= RESIDENT_BYTES
        self.images = train.images.to(self.device) if resident else train.images
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def per_epoch(self) -> int:
        """Steps per pass over the set."""
        return len(self.bounds) - 1

    def batch(self, step: int) -> Batch:
        """The views of optimizer step `step`, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.draws.order(epoch))
        rows = self._order[1][self.bounds[index] : self.bounds[index + 1]]
        own, weight = self._share(len(rows))
        shared = self._groups(epoch, index)
        mixing = self._mixing(epoch, index, len(rows))
        if mixing is None:
            images, view = self._augment(rows[own], epoch, shared)
            return Batch(epoch, rows[own], images, view, total=len(rows), weight=weight)
        partner, box = mixing
        # A view is computed once, although it may be both shown and pasted.
        needed, place = np.unique(np.concatenate([own, partner[own]]), return_inverse=True)
        images, view = self._augment(rows[needed], epoch, shared)
        mine, theirs = place[: len(own)], place[len(own) :]
        mixed = mix.paste(images[mine], images[theirs], box)
        partners = rows[partner[own]]
        return Batch(epoch, rows[own], mixed, view.take(mine), partners, view.take(theirs), box, len(rows), weight)

    def _share(self, count: int) -> tuple[np.ndarray, float]:
        """Positions of this process in a batch of `count`, and 0 for its weight if there are none."""
        own = np.arange(count * self.rank // self.world, count * (self.rank + 1) // self.world)
        return (own, 1.0) if len(own) else (np.zeros(1, np.int64), 0.0)

    def _groups(self, epoch: int, index: int) -> tuple[str, ...]:
        form = self.augmentation.dsa
        return dsa.draw_groups(self.draws.batch("dsa", epoch, index), form) if form else ()

    def _mixing(self, epoch: int, index: int, count: int) -> tuple[np.ndarray, mix.Box] | None:
        plan = self.augmentation
        if plan.cutmix == 0:
            return None
        rng = self.draws.batch("mix", epoch, index)
        return mix.draw_cutmix(rng, count, self.images.shape[-1], plan.cutmix, plan.cutmix_alpha)

    def _augment(self, rows: np.ndarray, epoch: int, groups: tuple[str, ...]) -> tuple[Tensor, View]:
        plan, draws = self.augmentation, self.draws
        whole = None if self.whole is None else self.whole[rows]
        view = draw_view(plan, draws, epoch, rows, self.images.shape[-1], whole)
        images = self.images[torch.from_numpy(rows).to(self.images.device)].to(self.device)
        if plan.autoaugment:
            images = autoaugment.autoaugment(images, draws.uniform("autoaugment", autoaugment.COLUMNS, epoch, rows))
        images = geometry.shuffle_tiles(images, view.rows, view.columns)
        images = geometry.crop_flip(images.float().div_(255), view.box, view.flip)
        if plan.jitter or plan.lighting:
            uniform = draws.uniform("color", color.COLUMNS, epoch, rows)
            images = color.apply_color(images, color.draw_color(uniform, plan.jitter or (0, 0, 0), plan.lighting))
        images = self.normalization.apply(images)
        if groups:
            images = dsa.apply_dsa(images, dsa.Dsa(draws.uniform("dsa", dsa.COLUMNS, epoch, rows), groups))
        return images, view


def draw_view(
    plan: Augmentation, draws: Draws, epoch: int, rows: np.ndarray, size: int, whole: np.ndarray | None = None
) -> View:
    """Geometry of the views of `rows` in `epoch`; those that are `whole` (bool [B]) keep their tiles in place."""
    view = geometry.whole_view(len(rows), size, plan.tiles)
    orders = (view.rows, view.columns)
    if plan.tiles > 1:
        uniform = draws.uniform("tiles", 2 * plan.tiles, epoch, rows)
        orders = tuple(geometry.tile_orders(u) for u in np.split(uniform, 2, axis=1))
        if whole is not None:
            orders = tuple(np.where(whole[:, None], view.rows, order) for order in orders)
    box, flip = view.box, view.flip
    if plan.crop_area is not None:
        box = geometry.crop_boxes(draws.uniform("crop", geometry.CROP_COLUMNS, epoch, rows), size, plan.crop_area)
    if plan.flip:
        flip = draws.uniform("flip", 1, epoch, rows)[:, 0] < 0.5
    return View(*orders, box, flip, size)
