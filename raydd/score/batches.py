"""Batches of a constant shape: the last one is padded with its own last row, which is then thrown away.

A network may compute a sample in other low bits at another batch size; at a constant one it does not, so scores are the
same whatever unit, worker or executor computed them. Compilation and CUDA graphs hold as well.
"""

from collections.abc import Iterator

import numpy as np
import torch


def padded_batches(count: int, batch: int) -> Iterator[tuple[list[int], int]]:
    """Row numbers of each batch (always `batch` of them) and how many of them are real."""
    for start in range(0, count, batch):
        rows = list(range(start, min(start + batch, count)))
        yield rows + [rows[-1]] * (batch - len(rows)), len(rows)


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Decoded images uint8 [n,S,S,3] as uint8 [n,3,S,S], copied: arrays of Arrow buffers are read-only."""
    return torch.tensor(images).permute(0, 3, 1, 2)
