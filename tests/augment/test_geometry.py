"""Crops equal torchvision's resized_crop and have its law; tiles move as wholes; identities are exact."""

import math
import random

import numpy as np
import pytest
import torch

from raydd.augment import geometry
from raydd.models.torchvisions import torchvision_models


def reference_box(rng: random.Random, size: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params for a square image, written from its documentation."""
    for _ in range(10):
        target = size * size * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= size and 0 < h <= size:
            return rng.randint(0, size - h), rng.randint(0, size - w), h, w
    return 0, 0, size, size


@pytest.mark.parametrize(("size", "area"), [(32, (0.08, 1.0)), (32, (0.5, 1.0)), (224, (0.25, 1.0))])
def test_boxes_have_torchvisions_law(size, area):
    count = 20000
    rng = random.Random(0)
    expected = np.array([reference_box(rng, size, area) for _ in range(count)])
    boxes = geometry.crop_boxes(np.random.default_rng(0).random((count, 22)), size, area)
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= size).all() and (left + width <= size).all()
    tolerance = 5 * expected.std(axis=0) * math.sqrt(2 / count)
    assert (abs(boxes.mean(axis=0) - expected.mean(axis=0)) < tolerance).all()
    assert (abs(boxes.std(axis=0) / expected.std(axis=0) - 1) < 0.03).all()
    product = abs((height * width).mean() / (expected[:, 2] * expected[:, 3]).mean() - 1)
    assert product < 0.01


def test_factor_1_crop_is_the_identity():
    boxes = geometry.crop_boxes(np.random.default_rng(0).random((5000, 22)), 32, (1.0, 1.0))
    assert (boxes == [0, 0, 32, 32]).all()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(geometry.crop_flip(images, boxes[:4], np.zeros(4, bool)), images)


@pytest.mark.parametrize("size", [16, 33])
def test_crop_equals_torchvision(size):
    torchvision_models()
    from torchvision.transforms.functional import hflip, resized_crop

    rng = np.random.default_rng(1)
    images = torch.rand(12, 3, size, size, dtype=torch.float64)
    boxes = geometry.crop_boxes(rng.random((12, 22)), size, (0.08, 1.0))
    flip = rng.random(12) < 0.5
    views = geometry.crop_flip(images.float(), boxes, flip)
    for image, view, (top, left, h, w), mirrored in zip(images, views, boxes.astype(int), flip):
        expected = resized_crop(image, top, left, h, w, [size, size], antialias=True)
        expected = hflip(expected) if mirrored else expected
        assert torch.allclose(view.double(), expected, atol=2e-5)


def test_tile_shuffle_moves_whole_tiles():
    factor, side = 3, 4
    index = torch.arange(factor**2).view(1, 1, factor, factor)
    image = index.repeat_interleave(side, 2).repeat_interleave(side, 3).expand(5, 3, -1, -1)
    rng = np.random.default_rng(2)
    rows, columns = geometry.tile_orders(rng.random((5, factor))), geometry.tile_orders(rng.random((5, factor)))
    moved = geometry.shuffle_tiles(image, rows, columns)
    for b in range(5):
        for r in range(factor):
            for c in range(factor):
                tile = moved[b, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
                assert (tile == rows[b, r] * factor + columns[b, c]).all()


def test_tile_shuffle_keeps_pixels_within_tiles():
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    moved = geometry.shuffle_tiles(image, np.array([[1, 0]]), np.array([[0, 1]]))
    assert torch.equal(moved[:, :, :4], image[:, :, 4:]) and torch.equal(moved[:, :, 4:], image[:, :, :4])


def test_tile_orders_are_equally_likely():
    orders = geometry.tile_orders(np.random.default_rng(3).random((12000, 3)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and abs(counts - 2000).max() < 200


def test_indivisible_tiles_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        geometry.shuffle_tiles(torch.zeros(1, 3, 7, 7), np.array([[1, 0]]), np.array([[0, 1]]))
