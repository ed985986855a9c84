"""Label forms: `patch` weights against pixel counting and Monte Carlo, CutMix shares by area, the teacher sees the
mixed view, and each form's degenerate cases agree."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from raydd.augment.geometry import View, crop_flip, shuffle_tiles, whole_view
from raydd.augment.mix import Box, paste
from raydd.errors import UserError
from raydd.evaluate.labels import HardLabels, OnlineLabels, PatchLabels, SingleLabels, make_labels, tile_shares
from raydd.evaluate.protocols import resolve
from raydd.models.normalization import Normalization
from raydd.train.batches import Batches
from raydd.train.sets import TrainSet

NORM = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
CLASSES, COUNT = 4, 12


def train_set(size=24, factor=2, tiles=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, size, size), dtype=torch.uint8, generator=generator)
    soft = 20 * torch.randn(COUNT, factor**2 if tiles is None else tiles, CLASSES, generator=generator)
    return TrainSet(images, torch.arange(COUNT) % CLASSES, [f"{i:03d}" for i in range(COUNT)], factor, soft)


def batches(train, name="soft", **changes):
    plan = resolve(name, num_classes=CLASSES, ipc=3, image_size=train.images.shape[-1], factor=train.factor)
    return Batches(train, dataclasses.replace(plan, **changes), 5, NORM)


def tile_index_images(count, factor, size):
    """One-hot tile numbers as float images [count, F * F, S, S]."""
    side = size // factor
    index = torch.arange(factor**2).view(factor, factor).repeat_interleave(side, 0).repeat_interleave(side, 1)
    return nn.functional.one_hot(index).permute(2, 0, 1).float().expand(count, -1, -1, -1)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_patch_weights_against_pixel_counting(factor):
    """The mean of one-hot tile numbers over the mixed view is the share of pixels from each tile.

    Pixels that straddle a tile or crop border are shared by interpolation, hence a tolerance of a pixel row.
    """
    size = 96
    train = train_set(size, factor)
    index = tile_index_images(COUNT, factor, size)
    for step in range(4):
        batch = batches(train).batch(step)
        shown, pasted = (
            crop_flip(shuffle_tiles(index[: len(v)], v.rows, v.columns), v.box, v.flip)
            for v in (batch.view, batch.partner_view)
        )
        for box in (batch.box, Box(13, 40, 70, 90, size)):
            inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
            counted_box = pasted[inside].sum((2, 3)) / size**2
            counted = paste(shown, torch.zeros_like(shown), box).mean((2, 3))
            weights = tile_shares(batch.view, factor) - tile_shares(batch.view, factor, box)
            other = tile_shares(batch.partner_view, factor, box)
            assert np.allclose(weights.reshape(len(batch), -1), counted, atol=1.5 / size)
            assert np.allclose(other.reshape(len(batch), -1), counted_box, atol=1.5 / size)
            assert np.allclose(weights.sum((1, 2)) + other.sum((1, 2)), 1)


def test_patch_weights_are_exact_for_any_rectangle():
    """Against a Monte Carlo integral that follows points from the view back to the stored image."""
    rng = np.random.default_rng(0)
    factor, size, count = 3, 30, 6
    orders = [np.argsort(rng.random((count, factor)), axis=1) for _ in range(2)]
    box = np.stack([rng.integers(0, 9, count), rng.integers(0, 9, count), *rng.integers(8, 21, (2, count))], 1)
    view = View(*orders, box.astype(float), rng.random(count) < 0.5, size)
    region = Box(3, 7, 25, 22, size)
    shares = tile_shares(view, factor, region)
    y, x = region.top + rng.random(200000) * 22, region.left + rng.random(200000) * 15
    for b in range(count):
        u = size - x if view.flip[b] else x
        row = ((box[b, 0] + y * box[b, 2] / size) // 10).astype(int)
        column = ((box[b, 1] + u * box[b, 3] / size) // 10).astype(int)
        tile = orders[0][b][row] * factor + orders[1][b][column]
        expected = np.bincount(tile, minlength=9) / 200000 * region.area
        assert np.allclose(shares[b].ravel(), expected, atol=2e-3)


def test_patch_target_of_a_whole_view_is_the_mean_of_its_tiles():
    train = train_set()
    batch = batches(train, "noaug:soft").batch(0)
    expected = (train.soft_labels[batch.rows] / 20).softmax(2).mean(1)
    assert torch.allclose(PatchLabels(train).targets(batch, 20.0), expected, atol=1e-6)


def test_patch_with_one_tile_is_single():
    train = train_set(factor=1)
    batch = batches(train).batch(1)
    patch, single = PatchLabels(train).targets(batch, 20.0), SingleLabels(train).targets(batch, 20.0)
    assert torch.allclose(patch, single, atol=1e-6) and torch.allclose(patch.sum(1), torch.ones(len(batch)))


def test_views_of_other_tilings_are_refused():
    with pytest.raises(ValueError, match="views of 2 x 2 tiles"):
        tile_shares(whole_view(1, 12, 2), 3)


def test_hard_labels_mix_by_what_the_box_covers():
    train = train_set()
    batch = batches(train).batch(0)
    targets = HardLabels(train, CLASSES).targets(batch, 1.0)
    shown = paste(torch.zeros(1, 1, 24, 24), torch.ones(1, 1, 24, 24), batch.box).mean().item()
    for target, row, partner in zip(targets, batch.rows, batch.partners):
        expected = torch.zeros(CLASSES)
        expected[train.labels[row]] += 1 - shown
        expected[train.labels[partner]] += shown
        assert torch.allclose(target, expected)


class Pixels(nn.Module):
    """Logits that depend on every pixel, so that any other view gives other logits."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def forward(self, x):
        self.seen = x
        return x.flatten(1)[:, : CLASSES * 100].view(len(x), CLASSES, -1).sum(2)


@pytest.mark.parametrize("own", [NORM, Normalization((0.1, 0.2, 0.3), (1.0, 0.5, 0.7))])
def test_online_teacher_sees_the_mixed_view_in_its_own_normalization(own):
    train = train_set()
    teacher = SimpleNamespace(model=Pixels(), info=SimpleNamespace(mean=own.mean, std=own.std), hash="t")
    labels = make_labels("online", train, num_classes=CLASSES, teacher=teacher, normalization=NORM)
    batch = batches(train).batch(0)
    targets = labels.targets(batch, 20.0)
    assert batch.box.area > 0
    assert torch.allclose(teacher.model.seen, own.apply(NORM.invert(batch.images)), atol=1e-5)
    assert torch.allclose(targets, (Pixels()(teacher.model.seen) / 20).softmax(1))
    assert isinstance(labels, OnlineLabels) and labels.teacher_forwards == 1


def test_missing_labels_are_named():
    train = train_set(factor=2, tiles=1)
    assert isinstance(make_labels("single", train, num_classes=CLASSES), SingleLabels)
    with pytest.raises(UserError, match="patch labels need 4 soft labels per image, the set has 1"):
        make_labels("patch", train, num_classes=CLASSES)
    with pytest.raises(UserError, match="need a teacher"):
        make_labels("online", train, num_classes=CLASSES)
    with pytest.raises(UserError, match="did you mean 'patch'"):
        make_labels("pathc", train, num_classes=CLASSES)
