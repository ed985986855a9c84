"""CutMix: the box has the drawn area when it fits, partners are a permutation, pixels come from where they should."""

import numpy as np
import pytest
import torch

from raydd.augment.mix import Box, draw_cutmix, paste


def draws(count, alpha=1.0, probability=1.0, size=224):
    return [draw_cutmix(np.random.default_rng(i), 4, size, probability, alpha) for i in range(count)]


def test_box_is_inside_and_partners_are_a_permutation():
    for partner, box in draws(200):
        assert 0 <= box.top <= box.bottom <= 224 and 0 <= box.left <= box.right <= 224
        assert sorted(partner) == [0, 1, 2, 3]


def test_uncut_boxes_have_uniform_area():
    """With alpha 1 the drawn area is uniform; a box that is cut off by no edge has exactly the drawn side."""
    sides = [b.bottom - b.top for _, b in draws(4000) if b.top > 0 and b.bottom < 224]
    # P(side <= s) is proportional to the integral of the uncut probability (224 - s)/224 under the density 2s/224^2.
    expected = np.cumsum([s * (224 - s) for s in range(224)]) / sum(s * (224 - s) for s in range(224))
    median = np.searchsorted(expected, 0.5)
    assert abs(np.median(sides) - median) < 6


def test_mean_area_against_brute_force():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(20000):
        side = int(224 * np.sqrt(1 - rng.random()))
        y, x = rng.integers(224, size=2)
        height = min(y + side // 2, 224) - max(y - side // 2, 0)
        areas.append(height * (min(x + side // 2, 224) - max(x - side // 2, 0)) / 224**2)
    ours = [b.area for _, b in draws(8000)]
    assert abs(np.mean(ours) - np.mean(areas)) < 4 * np.std(areas) / 8000**0.5 + 0.003


def test_probability():
    share = np.mean([d is not None for d in draws(2000, probability=0.5)])
    assert abs(share - 0.5) < 0.05
    assert draw_cutmix(np.random.default_rng(0), 4, 32, 0.0, 1.0) is None


@pytest.mark.parametrize("alpha", [0.3, 4.0])
def test_alpha_changes_the_spread_of_areas(alpha):
    sides = [b.bottom - b.top for _, b in draws(3000, alpha) if b.top > 0 and b.bottom < 224]
    reference = [b.bottom - b.top for _, b in draws(3000) if b.top > 0 and b.bottom < 224]
    assert (np.std(sides) > np.std(reference)) == (alpha < 1)


def test_paste():
    a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    box = Box(1, 2, 5, 8, 8)
    mixed = paste(a, b, box)
    assert mixed.mean().item() == box.area == 24 / 64
    assert (mixed[:, :, 1:5, 2:8] == 1).all() and (a == 0).all()
