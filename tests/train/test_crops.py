"""Views against slicing, bounds and distributions; draws belong to the image's position and the key alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from raydd.errors import UserError
from raydd.train.crops import MAX_RATIO, MIN_AREA, PAD, apply_views, draw_views


def test_no_augmentation_is_the_identity():
    images = torch.randn(4, 3, 8, 8)
    assert torch.allclose(apply_views(images, draw_views("none", False, 4, 8, 0)), images, atol=1e-5)


def test_pad_crop_is_a_slice_of_the_padded_image_perhaps_mirrored():
    size, count = 8, 64
    images = torch.randn(count, 3, size, size)
    maps = draw_views("pad_crop", True, count, size, "seed", 3)
    views = apply_views(images, maps)
    padded = F.pad(images, [PAD] * 4)
    seen = set()
    for image, view, (row, column) in zip(padded, views, maps):
        mirrored = row[0].item() < 0
        x, y = (round(value.item() * size / 2) + PAD for value in (row[2], column[2]))
        cut = image[:, y : y + size, x : x + size]
        assert torch.allclose(view, cut.flip(-1) if mirrored else cut, atol=1e-4)
        seen.add((mirrored, x, y))
    assert {mirrored for mirrored, _, _ in seen} == {True, False}
    assert {x for _, x, _ in seen} == {y for _, _, y in seen} == set(range(2 * PAD + 1))


def test_resized_crops_stay_inside_and_cover_the_stated_areas():
    maps = draw_views("resized_crop", False, 4000, 32, 1)
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    assert (maps[:, 0, 2].abs() + width <= 1 + 1e-6).all() and (maps[:, 1, 2].abs() + height <= 1 + 1e-6).all()
    area, ratio = width * height, width / height
    assert MIN_AREA - 1e-6 <= area.min() < MIN_AREA + 0.01 and area.max() > 0.97
    assert ratio.log().abs().max() <= math.log(MAX_RATIO) + 1e-5
    assert abs(ratio.log().mean()) < 0.01


def test_resized_crop_enlarges_the_right_region():
    ramp = torch.linspace(-1 + 1 / 16, 1 - 1 / 16, 16)  # each pixel's own coordinate
    image = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16)])[None]
    maps = torch.tensor([[[0.5, 0, 0.25], [0, 0.5, -0.25]]])
    view = apply_views(image, maps)[0]
    assert torch.allclose(view[0], (0.5 * ramp + 0.25).expand(16, 16), atol=1e-5)
    assert torch.allclose(view[1], (0.5 * ramp - 0.25)[:, None].expand(16, 16), atol=1e-5)


def test_draws_depend_on_position_and_key_alone():
    whole = draw_views("resized_crop", True, 50, 32, 7, 2)
    assert torch.equal(draw_views("resized_crop", True, 20, 32, 7, 2), whole[:20])
    assert not torch.equal(draw_views("resized_crop", True, 50, 32, 7, 3), whole)


def test_half_of_the_views_are_mirrored():
    flips = (draw_views("none", True, 4000, 32, 0)[:, 0, 0] < 0).float().mean()
    assert flips == pytest.approx(0.5, abs=0.03)


def test_unknown_augmentation():
    with pytest.raises(UserError, match="did you mean 'pad_crop'"):
        draw_views("padcrop", True, 1, 32, 0)
