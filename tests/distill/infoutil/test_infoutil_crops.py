"""Windows tile the image as they should, noise has the size it should, and draws belong to an image alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from raydd.distill.infoutil.config import CropConfig
from raydd.distill.infoutil.crops import (
    ASPECT,
    crop_boxes,
    pick_windows,
    random_resized_boxes,
    random_window,
    window_boxes,
)
from raydd.keyed import numpy_rng
from raydd.models.torchvisions import torchvision_models

HEAT = numpy_rng("heat of the test").normal(size=9)


def clean_share(heat, alpha: float, count: int = 2000) -> float:
    """How often a noisy pick is the clean one."""
    config = CropConfig(alpha=alpha)
    picks = np.array([pick_windows(heat, "cat", f"{i}", config, 0) for i in range(count)])
    return float((picks[:, :-1] == np.argmax(heat)).mean()) if picks.shape[1] > 1 else 1.0


def test_window_boxes_by_hand():
    boxes = window_boxes(16, 4, 2)
    assert boxes.shape == (9, 4)
    assert (
        boxes[0].tolist() == [0, 0, 8, 8] and boxes[1].tolist() == [4, 0, 12, 8] and boxes[8].tolist() == [8, 8, 16, 16]
    )
    assert window_boxes(16, 4, 4).tolist() == [[0, 0, 16, 16]]
    assert len(window_boxes(12, 4, 3)) == 4


def test_without_noise_there_is_one_crop_the_clean_one():
    assert pick_windows(HEAT, "cat", "a", CropConfig(alpha=0), 0).tolist() == [HEAT.argmax()]
    assert pick_windows(HEAT, "cat", "a", CropConfig(crops=1), 0).tolist() == [HEAT.argmax()]


def test_the_last_of_five_is_clean():
    picks = pick_windows(HEAT, "cat", "a", CropConfig(), 0)
    assert picks.shape == (5,) and picks[-1] == HEAT.argmax()


def test_noise_has_alpha_times_the_deviation_of_the_heat():
    """Two cells 0 and 1: deviation .5, so alpha a adds N(0, a/2) to each; the larger wins with Phi(sqrt(2) / a)."""
    for alpha in (0.5, 2.0, 4.0):
        wanted = (1 + math.erf(1 / alpha)) / 2
        assert abs(clean_share([0.0, 1.0], alpha) - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / 8000) + 1e-3


def test_more_noise_picks_the_clean_window_less_often():
    shares = [clean_share(HEAT, alpha) for alpha in (0, 0.25, 0.5, 1, 2, 4)]
    assert shares[0] == 1 and all(a > b for a, b in itertools.pairwise(shares))
    assert shares[-1] > 1 / 9


def test_heat_may_be_shifted_and_scaled():
    picks = [pick_windows(heat, "cat", "a", CropConfig(), 0).tolist() for heat in (HEAT, 4 * HEAT + 7)]
    assert picks[0] == picks[1]


def test_draws_belong_to_seed_class_and_key():
    draws = [
        pick_windows(np.arange(9), *name, CropConfig(crops=20), seed).tolist()
        for name, seed in [(("cat", "a"), 0), (("cat", "b"), 0), (("dog", "a"), 0), (("cat", "a"), 1)]
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_random_windows_are_uniform():
    """9000 draws: 1000 each, with a deviation of 30."""
    counts = np.bincount(
        np.concatenate([random_window(9, "cat", f"{i}", CropConfig(), 0) for i in range(1800)]), minlength=9
    )
    assert abs(counts - 1000).max() < 4.5 * 30


@pytest.mark.parametrize(("factor", "low"), [(1, 0.08), (2, 0.25)])
def test_random_resized_crops_are_distributed_as_torchvisions(factor, low):
    torchvision_models()
    from torchvision.transforms import RandomResizedCrop

    boxes = np.concatenate([random_resized_boxes(200, factor, "cat", f"{i}", 5, 0) for i in range(400)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 200).all()
    left, top, width, height = boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    image = torch.zeros(3, 200, 200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, (low, 1), ASPECT) for _ in range(2000)])
    for ours, column in ((top, 0), (left, 1), (height, 2), (width, 3)):
        assert ks_2samp(ours, theirs[:, column]).pvalue > 1e-3
    assert ks_2samp(width * height, theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert ks_2samp(width / height, theirs[:, 3] / theirs[:, 2]).pvalue > 1e-3


def test_ids_name_boxes():
    size, factor = 16, 2
    ids, boxes = crop_boxes(CropConfig(), size, factor, "cat", "a", 0, HEAT)
    assert boxes.shape == (9, 4) and ids.max() < 9
    ids, boxes = crop_boxes(CropConfig(crop_from="random_window"), size, factor, "cat", "a", 0, None)
    assert boxes.shape == (9, 4) and len(ids) == 5
    ids, boxes = crop_boxes(CropConfig(crop_from="random_resized"), size, factor, "cat", "a", 0, None)
    assert ids.tolist() == [0, 1, 2, 3, 4] and boxes.shape == (5, 4)
    ids, boxes = crop_boxes(CropConfig(crop_from="full"), size, factor, "cat", "a", 0, None)
    assert ids.tolist() == [0] and boxes.tolist() == [[0, 0, 16, 16]]
