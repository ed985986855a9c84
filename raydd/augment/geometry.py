"""Where each pixel of a training view comes from: tile shuffle, random resized crop, horizontal flip.

RDED (arXiv 2312.03526) shuffles the F x F tiles of a mosaic by permuting tile rows and tile columns, then crops an area
of 1/F to 1 and resizes it back. The crop follows torchvision's RandomResizedCrop: ten tries of (area, aspect ratio 3/4
to 4/3), the first that fits is taken, else the whole image; sampling never reads outside the crop, so the result equals
`resized_crop` with bilinear interpolation (crops are at most as large as the view, hence no antialiasing is due).

Parameters are drawn first (`draw_view`) and applied by pure functions; the same parameters tell the exact share of a
view that each tile supplies (`raydd.evaluate.labels`). Crop, resize and flip are one `grid_sample`.
Limit: images are square.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10
CROP_COLUMNS = 2 * TRIES + 2
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """Geometry of B views. Arrays live on the CPU.

    `rows`, `columns`: int64 [B, F], the source tile row (column) shown at each place. `box`: float64 [B, 4], top, left,
    height and width of the crop in pixels of the shuffled image. `flip`: bool [B]. `size`: side S in pixels.
    """

    rows: np.ndarray
    columns: np.ndarray
    box: np.ndarray
    flip: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.flip)

    def take(self, index: np.ndarray) -> "View":
        """The views at `index`, in that order."""
        return View(self.rows[index], self.columns[index], self.box[index], self.flip[index], self.size)


def whole_view(count: int, size: int, tiles: int = 1) -> View:
    """Views that show `count` images unchanged."""
    order = np.tile(np.arange(tiles), (count, 1))
    return View(order, order, np.tile([0.0, 0.0, size, size], (count, 1)), np.zeros(count, bool), size)


def tile_orders(uniform: np.ndarray) -> np.ndarray:
    """Permutations of F tiles from uniforms [B, F]: all F! orders are equally likely; int64 [B, F]."""
    return np.argsort(uniform, axis=1, kind="stable")


def crop_boxes(uniform: np.ndarray, size: int, area: tuple[float, float]) -> np.ndarray:
    """Random-resized-crop boxes with torchvision's law, from uniforms [B, 22]; float64 [B, 4] (top, left, h, w).

    `area` is the range of the box's share of the image. Boxes have whole-pixel corners.
    """
    share = area[0] + uniform[:, :TRIES] * (area[1] - area[0])
    low, high = (math.log(r) for r in RATIO)
    ratio = np.exp(low + uniform[:, TRIES : 2 * TRIES] * (high - low))
    width = np.rint(np.sqrt(share * size * size * ratio))
    height = np.rint(np.sqrt(share * size * size / ratio))
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.argmax(axis=1)
    row = np.arange(len(uniform))
    height = np.where(fits.any(axis=1), height[row, first], size)
    width = np.where(fits.any(axis=1), width[row, first], size)
    top = np.floor(uniform[:, -2] * (size - height + 1))
    left = np.floor(uniform[:, -1] * (size - width + 1))
    return np.stack([top, left, height, width], axis=1)


def shuffle_tiles(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Permute whole tile rows and columns; any dtype [B, C, S, S] with S divisible by F."""
    tiles, side = rows.shape[1], images.shape[-1] // max(rows.shape[1], 1)
    if (rows == np.arange(tiles)).all() and (columns == np.arange(tiles)).all():
        return images
    if side * tiles != images.shape[-1]:
        raise ValueError(f"{images.shape[-1]} px do not divide into {tiles} tiles")

    def pixels(order: np.ndarray) -> Tensor:
        index = (order[:, :, None] * side + np.arange(side)).reshape(len(order), -1)
        return torch.from_numpy(index).to(images.device)

    y, x = pixels(rows)[:, None, :, None], pixels(columns)[:, None, None, :]
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[batch, channel, y, x]


def crop_flip(images: Tensor, box: np.ndarray, flip: np.ndarray) -> Tensor:
    """Cut each image's box, resize it to the full side (bilinear) and mirror it where `flip`; float [B, C, S, S].

    A box of the whole image changes no pixel (exactly, when all boxes of the batch are whole).
    """
    size = images.shape[-1]
    if (box == [0, 0, size, size]).all():
        return flip_where(images, flip)
    grid = torch.empty(len(images), size, size, 2)
    grid[..., 0] = _coordinates(box[:, 1], box[:, 3], size, flip)[:, None, :]
    grid[..., 1] = _coordinates(box[:, 0], box[:, 2], size, np.zeros_like(flip))[:, :, None]
    return F.grid_sample(images, grid.to(images.device, images.dtype), padding_mode="border", align_corners=False)


def flip_where(images: Tensor, flip: np.ndarray) -> Tensor:
    """Mirror left and right the images where `flip`; exact."""
    if not flip.any():
        return images
    where = torch.from_numpy(flip).to(images.device)[:, None, None, None]
    return torch.where(where, images.flip(-1), images)


def _coordinates(start: np.ndarray, length: np.ndarray, size: int, flip: np.ndarray) -> Tensor:
    """Source pixel of each view pixel along one axis, in grid_sample's [-1, 1] units; float32 [B, S]."""
    centers = (np.arange(size) + 0.5) / size
    source = start[:, None] + centers * length[:, None] - 0.5
    source = np.clip(source, start[:, None], (start + length - 1)[:, None])
    source = np.where(flip[:, None], source[:, ::-1], source)
    return torch.from_numpy((2 * source + 1) / size - 1).float()
