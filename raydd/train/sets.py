"""What a student learns from and is tested on: whole sets of uint8 images in memory."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from raydd.keyed import digest


@dataclass
class TrainSet:
    """N square training images, put in the order of their keys on construction: row i is the i-th smallest key.

    `images` uint8 [N, 3, S, S]; `labels` int64 [N]; `keys` N unique strings; `factor` F of mosaics (F x F tiles);
    `soft_labels` float logits [N, k, K] with k = F * F tiles in row-major order, or k = 1, or None. `whole` bool [N]:
    the images of a set of mosaics that are none (originals of a doped set), whose tiles are not shuffled; or None.
    Raises `ValueError` when lengths differ or keys repeat.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    factor: int = 1
    soft_labels: Tensor | None = None
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if count == 0 or len(self.labels) != count or len(self.keys) != count:
            raise ValueError(f"{count} images, {len(self.labels)} labels and {len(self.keys)} keys")
        if len(set(self.keys)) != count:
            raise ValueError("keys of a training set must be unique")
        order = sorted(range(count), key=self.keys.__getitem__)
        if order != list(range(count)):
            self.images, self.labels = self.images[order], self.labels[order]
            self.keys = [self.keys[i] for i in order]
            self.soft_labels = None if self.soft_labels is None else self.soft_labels[order]
            self.whole = None if self.whole is None else self.whole[order]

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Hash of keys, labels, pixels and `whole`; equal for equal content in any original order."""
        images = np.ascontiguousarray(self.images.cpu().numpy()).tobytes()
        parts = (tuple(self.keys), tuple(self.labels.tolist()), digest(images, size=16))
        parts += () if self.whole is None else (tuple(self.whole.tolist()),)
        return digest(*parts, size=8).hex()


@dataclass
class ValSet:
    """M test images, already resized and center cropped: uint8 [M, 3, S, S], int64 [M], and their keys."""

    images: Tensor
    labels: Tensor
    keys: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int = 256):
        """Yield (images, labels) in order, `size` at a time."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size], self.labels[start : start + size]
