"""Squared norm of the weight and bias gradient of `nn.Conv2d`, per sample, in the cheapest of several exact forms.

From the layer's input a [B, C, H, W] and output gradient g [B, O, h, w], T = h w positions, D = C/groups k k:

    instantiated  form the sample's weight gradient [O, D], take its squares, drop it; cost D O T
    ghost         sum over pairs of positions of (inner product of the two input patches) * (inner product of the two
                  rows of g); never forms a gradient. Usual cost T^2 (D + O) (arXiv 2205.10683). Here patches are not
                  unfolded: their Gram matrix is the sum of k*k shifted views of the Gram matrix of single pixels, so
                  the cost is H^2 W^2 C + T^2 (O + k k) (ours)

On a CPU the convolution library forms weight gradients three to four times faster than unfolding and matrix products, a
sample at a time, or for small maps, which it refuses singly, all samples as the groups of one convolution. Elsewhere
unfolded batched products are used.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Measured time of a ghost multiply-add in those of the instantiated form (CPU); a guess for accelerators.
GHOST_COST = {"cpu": 2.5}
GHOST_COST_ELSEWHERE = 1.5
# torch sends smaller single maps to its own slow kernel instead of oneDNN (use_mkldnn in Convolution.cpp, torch 2.13).
LIBRARY_LEAST = 20480


def sq(x: Tensor) -> Tensor:
    """Sum of squares per sample: [B, ...] -> [B]."""
    flat = x.flatten(1)
    return torch.linalg.vecdot(flat, flat)


def sub_batches(count: int, bytes_per_sample: int, scratch: int) -> Iterator[slice]:
    """Slices of a batch that keep a temporary of `bytes_per_sample` within `scratch` bytes (one sample at least)."""
    step = max(1, scratch // max(1, bytes_per_sample))
    return (slice(start, start + step) for start in range(0, count, step))


def conv_norm(layer: nn.Conv2d, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """nn.Conv2d with any stride, dilation, padding and groups."""
    a, padding = _padded(layer, a)
    if ghost_first(layer, a, g, padding):
        total = conv_ghost(layer, a, g, padding, scratch)
    else:
        total = conv_instantiated(layer, a, g, padding, scratch)
    return total if layer.bias is None else total + sq(g.sum(dim=(2, 3)))


def ghost_first(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int]) -> bool:
    """Whether the ghost form takes less time than the instantiated one (multiply-adds, weighted by device)."""
    if layer.groups > 1:
        return False
    pixels = (a.shape[2] + 2 * padding[0]) * (a.shape[3] + 2 * padding[1])
    positions, taps = g[0, 0].numel(), math.prod(layer.kernel_size)
    ghost = pixels**2 * layer.in_channels + positions**2 * (layer.out_channels + taps)
    return ghost * GHOST_COST.get(a.device.type, GHOST_COST_ELSEWHERE) < layer.weight.numel() * positions


def conv_ghost(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int], scratch: int) -> Tensor:
    """Weight part by Gram matrices, groups = 1: a [B, C, H, W], g [B, O, h, w] -> [B]."""
    a = F.pad(a, (padding[1], padding[1], padding[0], padding[0]))
    pixels, positions = a.shape[2] * a.shape[3], g.shape[2] * g.shape[3]
    size = (pixels**2 + 3 * positions**2) * a.element_size()
    parts = []
    for part in sub_batches(len(a), size, scratch):
        gram = _pixel_gram(a[part])
        patches = sum(_shifted(gram, layer, g.shape[2:], row, column) for row, column in _taps(layer))
        parts.append(torch.linalg.vecdot(patches.flatten(1), _pixel_gram(g[part]).flatten(1)))
    return torch.cat(parts)


def _pixel_gram(x: Tensor) -> Tensor:
    """Inner products over channels of all pairs of pixels: [B, C, H, W] -> [B, H, W, H, W]."""
    flat = x.flatten(2)
    return (flat.mT @ flat).view(len(x), *x.shape[2:], *x.shape[2:])


def _taps(layer: nn.Conv2d) -> Iterator[tuple[int, int]]:
    return ((row, column) for row in range(layer.kernel_size[0]) for column in range(layer.kernel_size[1]))


def _shifted(gram: Tensor, layer: nn.Conv2d, out: torch.Size, row: int, column: int) -> Tensor:
    """The part of the pixel Gram matrix that kernel tap (row, column) of both patches sees: [B, h, w, h, w]."""
    starts = row * layer.dilation[0], column * layer.dilation[1]
    cut = [slice(s, s + (n - 1) * step + 1, step) for s, n, step in zip(starts, out, layer.stride)]
    return gram[:, cut[0], cut[1], cut[0], cut[1]]


def conv_instantiated(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int], scratch: int) -> Tensor:
    """Weight part by per-sample weight gradients that are dropped at once: a [B, C, H, W], g [B, O, h, w] -> [B]."""
    if a.device.type != "cpu":
        return conv_unfolded(layer, a, g, padding, scratch)
    small = a[0].numel() <= LIBRARY_LEAST and max(layer.kernel_size) <= 3
    if small and layer.groups == 1:
        return _conv_grouped(layer, a, g, padding, scratch)
    norms = [sq(_weight_grad(layer, a[i : i + 1], g[i : i + 1], padding, layer.groups)[None]) for i in range(len(a))]
    return torch.cat(norms)


def conv_unfolded(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int], scratch: int) -> Tensor:
    """Weight part by unfolded patches and batched products, for accelerators: a [B, C, H, W], g [B, O, h, w] -> [B]."""
    groups, positions = layer.groups, g.shape[2] * g.shape[3]
    fan_in = layer.weight[0].numel()
    size = (groups * fan_in * positions + layer.weight.numel()) * a.element_size()
    parts = []
    for part in sub_batches(len(a), size, scratch):
        patches = F.unfold(a[part], layer.kernel_size, layer.dilation, padding, layer.stride)
        rows = g[part].reshape(-1, layer.out_channels // groups, positions)
        parts.append(sq((rows @ patches.view(-1, fan_in, positions).mT).view(len(patches), -1)))
    return torch.cat(parts)


def _conv_grouped(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int], scratch: int) -> Tensor:
    """Samples as groups of one convolution, so that the library takes a batch of small maps at once."""
    parts = []
    for part in sub_batches(len(a), layer.weight.numel() * a.element_size(), scratch):
        count = len(a[part])
        maps, gradients = (t[part].reshape(1, -1, *t.shape[2:]) for t in (a, g))
        parts.append(sq(_weight_grad(layer, maps, gradients, padding, count).view(count, -1)))
    return torch.cat(parts)


def _weight_grad(layer: nn.Conv2d, a: Tensor, g: Tensor, padding: tuple[int, int], groups: int) -> Tensor:
    shape = (g.shape[1], a.shape[1] // groups, *layer.kernel_size)
    return torch.nn.grad.conv2d_weight(a, shape, g, layer.stride, padding, layer.dilation, groups)


def _padded(layer: nn.Conv2d, a: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Input and the zero padding still to apply; modes and asymmetric padding that the formulas lack are applied."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return a, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(a, layer._reversed_padding_repeated_twice, mode=mode), (0, 0)
