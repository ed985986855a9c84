"""Numbered tiles land where the orders say, and tiles are copied, not resampled, where sizes agree."""

import pytest
import torch

from raydd.distill.encode import resize
from raydd.distill.infoutil.mosaic import arrange, compose, cut


def numbered(ranks: list[int], side: int = 2) -> torch.Tensor:
    """One tile per rank, filled with it."""
    return torch.tensor(ranks, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side)


def mosaics(ipc: int, order: str, factor: int = 2) -> list[list[list[int]]]:
    """The rank that each place of each mosaic shows."""
    groups = arrange(list(range(factor**2 * ipc)), ipc, order)
    return [compose(numbered(group), factor)[0, ::2, ::2].tolist() for group in groups]


def test_numbered_tiles_of_three_images():
    assert mosaics(3, "consecutive") == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert mosaics(3, "strided") == [[[0, 3], [6, 9]], [[1, 4], [7, 10]], [[2, 5], [8, 11]]]


def test_numbered_tiles_of_one_image():
    assert mosaics(1, "consecutive") == mosaics(1, "strided") == [[[0, 1], [2, 3]]]
    assert mosaics(1, "strided", factor=3) == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]
    assert mosaics(3, "strided", factor=1) == mosaics(3, "consecutive", factor=1) == [[[0]], [[1]], [[2]]]


def test_tiles_keep_their_orientation():
    tile = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert torch.equal(compose(tile, 1), tile[0])
    assert torch.equal(compose(torch.cat([tile, tile + 50, tile + 100, tile + 150]), 2)[:, 2:, :2], tile[0] + 100)


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (3, 1, 7, 5), (4, 4, 8, 8)])
def test_a_crop_of_the_tiles_size_is_copied(box):
    image = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
    left, top, right, bottom = box
    assert torch.equal(cut(image, box, 4), image[:, top:bottom, left:right])


def test_another_crop_is_resized_once():
    image = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
    assert torch.equal(cut(image, (1, 2, 7, 7), 4), resize(image[None, :, 2:7, 1:7], 4)[0])
