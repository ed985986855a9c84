"""Views for training a classifier: a random crop and a flip per image, drawn for a whole epoch at once.

A view is one affine map from output to input coordinates, so shifted crops, resized crops and flips are all the same
bilinear resampling. Draws depend on (seed, epoch, position of the image) alone, not on batches. Crops of more than the
image are padded with zeros, which is the mean color once images are normalized.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.errors import choose
from raydd.keyed import numpy_rng

AUGMENTS = ("resized_crop", "pad_crop", "none")
PAD = 4
MIN_AREA = (
    0.25  # also the share of an image that InfoUtil's windows show a teacher (ours; torchvision's default is 0.08)
)
MAX_RATIO = 4 / 3


def draw_views(augment: str, flip: bool, count: int, image_size: int, *key: object) -> Tensor:
    """Affine maps float32 [count, 2, 3] for `apply_views`, a function of `key` and the position alone.

    `resized_crop` takes `MIN_AREA`..1 of the area at an aspect ratio of 3/4..4/3 and enlarges it, `pad_crop` shifts by
    up to `PAD` whole pixels, `none` keeps the frame; `flip` mirrors half of the images.
    """
    choose("augmentation", augment, AUGMENTS)
    draws = numpy_rng("views", *key).random((count, 5))
    scale, shift = np.ones((count, 2)), np.zeros((count, 2))
    if augment == "resized_crop":
        area = MIN_AREA + (1 - MIN_AREA) * draws[:, 0]
        ratio = MAX_RATIO ** (2 * draws[:, 1] - 1)
        scale = np.minimum(1, np.sqrt(np.stack([area * ratio, area / ratio], 1)))
        shift = (1 - scale) * (2 * draws[:, 2:4] - 1)
    elif augment == "pad_crop":
        pixels = np.floor(draws[:, 2:4] * (2 * PAD + 1)) - PAD
        shift = 2 * pixels / image_size
    if flip:
        scale[:, 0] *= np.where(draws[:, 4] < 0.5, -1, 1)
    maps = np.zeros((count, 2, 3), dtype=np.float32)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = scale[:, 0], scale[:, 1], shift
    return torch.from_numpy(maps)


def apply_views(images: Tensor, maps: Tensor) -> Tensor:
    """Resample float [B, C, S, S] by maps [B, 2, 3]; float of the same shape, zeros outside the image."""
    grid = F.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
