"""Hand-made crops: RDED's rule against a reference, direction, competition per image, and the teacher's mistakes."""

import numpy as np
import pytest

from raydd.distill.infoutil.config import SelectConfig
from raydd.distill.infoutil.select import Crop, compete, select
from raydd.keyed import numpy_rng

BOXES = [(x, 0, x + 4, 4) for x in range(5)]


def crops_of(scores: np.ndarray, correct=None) -> list[Crop]:
    """One crop per entry of scores [images, crops]; the last of each image is the clean one."""
    return [
        Crop(f"{i:02d}", BOXES[j], float(s), correct is None or bool(correct[i][j]), clean=j == len(row) - 1)
        for i, row in enumerate(scores)
        for j, s in enumerate(row)
    ]


def names(crops: list[Crop]) -> list[tuple[str, int]]:
    return [(crop.key, crop.box[0]) for crop in crops]


def rded_reference(losses: np.ndarray, count: int) -> list[tuple[str, int]]:
    """RDED: the lowest loss of each image's crops, then the images in ascending order."""
    best = losses.argmin(axis=1)
    lowest = losses[np.arange(len(losses)), best]
    return [(f"{i:02d}", int(best[i])) for i in np.argsort(lowest)[:count]]


def test_rded_rule():
    losses = numpy_rng("rded").random((30, 5))
    chosen = select(crops_of(losses), 12, SelectConfig(direction="bottom"))
    assert names(chosen) == rded_reference(losses, 12)


def test_order_of_the_crops_is_free():
    crops = crops_of(numpy_rng("order").random((20, 5)).round(1))
    for direction in ("top", "bottom", "median"):
        config = SelectConfig(direction=direction)
        assert select(crops[::-1], 7, config) == select(crops, 7, config)


def test_top_takes_the_highest_of_each_image():
    scores = np.array([[1, 9, 3], [4, 5, 8], [7, 2, 6]])
    assert names(select(crops_of(scores), 2, SelectConfig())) == [("00", 1), ("01", 2)]


def test_median_takes_the_middle_crop_and_the_middle_ranks():
    scores = np.array([[10, 11, 90], [1, 20, 30], [40, 0, 99], [50, 51, 52], [61, 60, 2]])
    assert [crop.score for crop in select(crops_of(scores), 5, SelectConfig(direction="median"))] == [
        60,
        51,
        40,
        20,
        11,
    ]
    assert [crop.score for crop in select(crops_of(scores), 3, SelectConfig(direction="median"))] == [51, 40, 20]
    assert [crop.score for crop in select(crops_of(scores), 2, SelectConfig(direction="median"))] == [51, 40]


def test_clean_ignores_the_noisy_crops():
    scores = np.array([[9, 9, 1], [8, 8, 3], [0, 0, 2]])
    assert names(select(crops_of(scores), 2, SelectConfig(per_image="clean"))) == [("01", 2), ("02", 2)]


@pytest.mark.parametrize(("most", "wanted"), [(1, [("00", 0), ("01", 2)]), (2, [("00", 0), ("00", 1)])])
def test_pooled_lets_an_image_win_as_often_as_allowed(most, wanted):
    scores = np.array([[9, 8, 7], [1, 2, 6]])
    assert names(select(crops_of(scores), 2, SelectConfig(per_image="pooled", max_per_image=most))) == wanted


def test_pooled_with_one_per_image_is_the_best_of_each():
    crops = crops_of(numpy_rng("pooled").random((10, 5)))
    for direction in ("top", "bottom"):
        best, pooled = (
            select(crops, 6, SelectConfig(direction=direction, per_image=how)) for how in ("best", "pooled")
        )
        assert best == pooled


def test_mistakes_are_dropped_while_enough_others_remain():
    scores = np.array([[9, 1], [8, 2], [7, 3]])
    correct = [[False, True], [False, False], [True, True]]
    config = SelectConfig(require_correct=True)
    assert names(select(crops_of(scores, correct), 2, config)) == [("02", 0), ("00", 1)]
    assert names(select(crops_of(scores, correct), 3, config)) == [("02", 0), ("00", 1), ("01", 0)]
    assert names(select(crops_of(scores, correct), 2, SelectConfig())) == [("00", 0), ("01", 0)]


def test_mistakes_count_before_the_best_of_an_image_is_taken():
    """Otherwise an image whose best crop is wrong would lose its right one."""
    crops = crops_of(np.array([[9, 1]]), [[False, True]])
    assert names(compete(crops, SelectConfig(require_correct=True))) == [("00", 1)]


def test_ties_go_to_the_first_key_and_box():
    assert names(select(crops_of(np.ones((4, 3))), 2, SelectConfig())) == [("00", 0), ("01", 0)]


def test_too_few_crops_are_a_programmers_error():
    with pytest.raises(ValueError, match="2 crops compete for 3 places"):
        select(crops_of(np.ones((2, 3))), 3, SelectConfig())
