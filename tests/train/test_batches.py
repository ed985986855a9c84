"""Batches: independent of split and of listing order, every image once per epoch, the views match their parameters."""

import dataclasses

import numpy as np
import pytest
import torch

from raydd.augment.geometry import crop_flip, shuffle_tiles
from raydd.augment.mix import paste
from raydd.evaluate.protocols import resolve
from raydd.models.normalization import Normalization
from raydd.train.batches import Batches, batch_bounds
from raydd.train.protocol import Augmentation
from raydd.train.sets import TrainSet

NORM = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
COUNT, SIZE = 22, 16


def train_set(order=None):
    images = torch.randint(
        0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    order = list(range(COUNT)) if order is None else order
    return TrainSet(images[order], torch.arange(COUNT)[order] % 5, [f"{i:03d}" for i in order], factor=2)


def protocol(name="soft", batch=8, **changes):
    plan = resolve(name, num_classes=5, ipc=4, n_images=COUNT, image_size=SIZE, factor=2)
    return dataclasses.replace(plan, batch=batch, **changes)


@pytest.mark.parametrize("name", ["soft", "hard", "glad", "dsco_cifar", "infoutil", "noaug:hard"])
def test_listing_order_does_not_matter(name):
    first, second = (Batches(train_set(o), protocol(name), 1, NORM) for o in (None, list(range(COUNT))[::-1]))
    for step in (0, 4):
        assert torch.equal(first.batch(step).images, second.batch(step).images)


def test_every_image_once_per_epoch_and_reshuffled():
    batches = Batches(train_set(), protocol(), 0, NORM)
    epochs = [np.concatenate([batches.batch(e * 3 + i).rows for i in range(3)]) for e in range(2)]
    assert batches.per_epoch == 3
    assert all(sorted(rows) == list(range(COUNT)) for rows in epochs) and (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("name", ["hard", "dsco_cifar", "soft"])
def test_per_image_augmentation_does_not_depend_on_the_batch_size(name):
    """Without what a batch shares, an image's view in an epoch is the same at batch 5 and at batch 8."""
    plan = dataclasses.replace(protocol(name).augmentation, cutmix=0.0)
    views = []
    for size in (5, 8):
        batches = Batches(train_set(), protocol(name, size, augmentation=plan), 3, NORM)
        parts = [batches.batch(i) for i in range(batches.per_epoch)]
        order = np.concatenate([p.rows for p in parts]).argsort()
        views.append(torch.cat([p.images for p in parts])[order])
    assert torch.allclose(*views, atol=1e-6)


def test_view_is_what_its_parameters_say():
    batches = Batches(train_set(), protocol("soft"), 0, NORM)
    batch = batches.batch(1)

    def rebuild(rows, view):
        images = shuffle_tiles(batches.train.images[torch.from_numpy(rows)], view.rows, view.columns)
        return crop_flip(images.float() / 255, view.box, view.flip)

    mixed = paste(rebuild(batch.rows, batch.view), rebuild(batch.partners, batch.partner_view), batch.box)
    assert torch.allclose(batch.images, NORM.apply(mixed), atol=1e-5)
    assert batch.box.area > 0


@pytest.mark.parametrize("name", ["soft", "hard", "glad"])
def test_processes_share_one_batch(name):
    whole = Batches(train_set(), protocol(name), 2, NORM)
    parts = [Batches(train_set(), protocol(name), 2, NORM, rank=r, world=3) for r in range(3)]
    for step in range(3):
        slices = [p.batch(step) for p in parts]
        batch = whole.batch(step)
        assert (np.concatenate([s.rows for s in slices]) == batch.rows).all()
        assert torch.allclose(torch.cat([s.images for s in slices]), batch.images, atol=1e-6)
        assert {s.total for s in slices} == {len(batch)}


def test_a_process_without_views_keeps_step():
    parts = [Batches(train_set(), protocol(batch=2), 2, NORM, rank=r, world=3).batch(0) for r in range(3)]
    assert sorted(p.weight for p in parts) == [0, 1, 1] and sum(len(p) * p.weight for p in parts) == 2


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 3, 2]), (3, 8, [3]), (1, 8, [1]), (3, 1, [1, 1, 1])]
)
def test_no_batch_of_one(count, batch, sizes):
    assert np.diff(batch_bounds(count, batch)).tolist() == sizes


def test_no_augmentation_is_normalization_only():
    batches = Batches(train_set(), protocol("noaug:hard"), 0, NORM)
    batch = batches.batch(0)
    assert batches.augmentation == Augmentation() and batch.box is None
    assert torch.equal(batch.images, NORM.apply(batches.train.images[torch.from_numpy(batch.rows)]))


def test_whole_images_keep_their_tiles_in_place():
    """In a set of mosaics and originals: the originals' views are those of no shuffle, the mosaics' are unchanged."""
    mixed, plan = train_set(), protocol(augmentation=Augmentation(tiles=2))
    mixed.whole = torch.arange(COUNT) % 3 == 0
    batch, shuffled, still = (
        Batches(train, p, 1, NORM).batch(0)
        for train, p in ((mixed, plan), (train_set(), plan), (mixed, protocol(augmentation=Augmentation())))
    )
    whole = mixed.whole[batch.rows]
    assert torch.equal(batch.images[whole], still.images[whole])
    assert torch.equal(batch.images[~whole], shuffled.images[~whole])
    assert not torch.equal(shuffled.images[whole], still.images[whole])
    assert (batch.view.rows[whole.numpy()] == [0, 1]).all()
