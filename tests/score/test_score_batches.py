"""Every row is computed once, in batches of one shape; pixels arrive as they were."""

import numpy as np
import pytest
import torch

from raydd.score.batches import padded_batches, to_pixels


@pytest.mark.parametrize(("count", "batch"), [(1, 4), (4, 4), (5, 4), (11, 3), (7, 1)])
def test_real_rows_are_all_rows_in_order(count, batch):
    seen = []
    for rows, real in padded_batches(count, batch):
        assert len(rows) == batch and set(rows[real:]) <= {rows[real - 1]}
        seen += rows[:real]
    assert seen == list(range(count))


def test_nothing_needs_no_batch():
    assert list(padded_batches(0, 4)) == []


def test_pixels_are_copied_from_read_only_buffers(recwarn):
    images = np.frombuffer(bytes(range(48)), np.uint8).reshape(1, 4, 4, 3)
    pixels = to_pixels(images)
    assert pixels.shape == (1, 3, 4, 4) and pixels.dtype == torch.uint8
    assert (pixels.permute(0, 2, 3, 1).numpy() == images).all()
    pixels[0] = 0
    assert images.sum() > 0 and not recwarn.list
