"""Uniform numbers for augmentations: one row per image and epoch, read by the rank of the image's key.

An epoch's matrix is a function of (seed, epoch, group, number of images), so an image gets the same augmentation
whatever the batch size, the process that handles it, or the library's own random streams. Each group of operations
has its own matrix: a protocol that adds color jitter leaves crops and flips where they were.

Only `Generator.random` is used (other NumPy distributions may change between versions); everything else is derived
from uniforms here.
"""

import numpy as np

from raydd.keyed import numpy_rng


class Draws:
    """Per-image uniforms of one training run over `count` images; keeps the current epoch's matrices."""

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count
        self._epoch, self._matrices = -1, {}

    def uniform(self, group: str, columns: int, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Numbers in [0, 1) for the images `rows` (ranks of their keys); float64 [len(rows), columns]."""
        if epoch != self._epoch:
            self._epoch, self._matrices = epoch, {}
        if group not in self._matrices:
            self._matrices[group] = numpy_rng(self.seed, "aug", group, epoch).random((self.count, columns))
        return self._matrices[group][rows]

    def batch(self, group: str, epoch: int, step: int) -> np.random.Generator:
        """Generator for what a whole batch shares (the CutMix box, the one DSA operation of a step)."""
        return numpy_rng(self.seed, group, epoch, step)

    def order(self, epoch: int) -> np.ndarray:
        """Permutation of all images for `epoch`; int64 [count]."""
        return np.argsort(numpy_rng(self.seed, "order", epoch).random(self.count), kind="stable")
