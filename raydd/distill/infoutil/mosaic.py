"""Tiles to mosaics (InfoUtil, step 8). Tiles are copied where a crop has the tile's size, else resized once."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from raydd.distill.encode import resize

T = TypeVar("T")


def cut(image: torch.Tensor, box: Sequence[int], side: int) -> torch.Tensor:
    """Crop `box` (left, top, right, bottom) out of a uint8 image [3,S,S] as a tile [3,side,side]."""
    left, top, right, bottom = box
    return resize(image[None, :, top:bottom, left:right], side)[0]


def arrange(ranked: Sequence[T], ipc: int, order: str) -> list[list[T]]:
    """Deal k*ipc ranked crops to `ipc` mosaics of k tiles in row-major order.

    `consecutive` (paper): mosaic j holds ranks jk .. jk+k-1. `strided` (RDED): its tile t holds rank t*ipc + j, so that
    the best ipc crops are all top-left.
    """
    tiles = len(ranked) // ipc
    if order == "strided":
        return [[ranked[t * ipc + j] for t in range(tiles)] for j in range(ipc)]
    return [list(ranked[j * tiles : (j + 1) * tiles]) for j in range(ipc)]


def compose(tiles: torch.Tensor, factor: int) -> torch.Tensor:
    """Tiles uint8 [factor*factor,3,s,s] in row-major order as one image [3,factor*s,factor*s]."""
    side = tiles.shape[-1]
    grid = tiles.reshape(factor, factor, 3, side, side)
    return grid.permute(2, 0, 3, 1, 4).reshape(3, factor * side, factor * side)
