"""Values of a teacher on partly hidden images: v(A) = output_y(m_A x + (1 - m_A) b), for many images and coalitions.

All (image, coalition) pairs are one list that is cut into forwards of exactly `max_batch` rows, the last one padded:
with one batch shape the kernels are the same whatever the number of images, so an image's values do not depend on who
shares its batch, and compiled graphs hold. A mask is never enlarged to pixels: images are stored as grid tiles in
channels-last order and a mask broadcasts over them. Nothing in the loop waits for the device.

Games: `logit` of the label (ours; the paper does not say), `probability`, `margin` (logit minus the best other logit).
Baselines after normalization: `zero` (the mean color of the data; Captum's default), `image_mean`, `blur` (Gaussian of
sigma S/16, ours).
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from raydd.errors import UserError, choose
from raydd.score.outputs import final_linear, margin, require_eval

GAMES = ("logit", "probability", "margin")
BASELINES = ("zero", "image_mean", "blur")
PRECISIONS = ("fp32", "bf16")


def default_max_batch(device: torch.device) -> int:
    """Rows per forward: what fills the device without wasting much padding (512 on an accelerator, 64 on a CPU)."""
    return 64 if device.type == "cpu" else 512


@torch.no_grad()
def masked_values(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    masks: Tensor,
    *,
    grid: int,
    game: str = "logit",
    baseline: str = "zero",
    max_batch: int | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Evaluate all coalitions of all images.

    x: normalized float [B, 3, S, S], S a multiple of grid; targets: int64 [B]; masks: bool [K, P] shared, or
    [B, K, P] per image, P = grid^2. Returns float32 [B, K]. Raises `UserError` for an unknown option or an S that grid
    does not divide, `ValueError` for a teacher in training mode.
    """
    choose("game", game, GAMES)
    choose("precision", precision, PRECISIONS)
    require_eval(model)
    tiles, base = _tiles(x, grid), _tiles(_baseline(x, baseline), grid)
    masks = torch.as_tensor(masks, device=x.device)
    images, coalitions = len(x), masks.shape[-2]
    rows, size = images * coalitions, max_batch or default_max_batch(x.device)
    order = torch.arange(-(-rows // size) * size, device=x.device).clamp_(max=rows - 1)
    image = order // coalitions
    mask = order if masks.ndim == 3 else order % coalitions
    masks = masks.reshape(-1, grid, 1, grid, 1, 1)
    values = torch.empty(len(order), device=x.device)
    with _precision(model, x, precision):
        for start in range(0, len(order), size):
            part = slice(start, start + size)
            rows_of = image[part]
            visible = torch.where(masks[mask[part]], tiles[rows_of], base[rows_of])
            logits = model(visible.view(size, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2))
            values[part] = _payoff(logits.float(), targets[rows_of], game)
    return values[:rows].view(images, coalitions)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A channels-last copy of `model` with batch norms folded into the convolutions before them, for games only.

    Same function up to rounding, but other parameters: never take gradient norms of it. A network that torch.fx cannot
    trace is copied unfolded.
    """
    require_eval(model)
    try:
        folded = fuse(model)
    except Exception:  # fx raises many types on data-dependent control flow; folding only saves time
        folded = copy.deepcopy(model)
    return folded.to(memory_format=torch.channels_last)


def _tiles(x: Tensor, grid: int) -> Tensor:
    side = x.shape[-1]
    if side % grid or x.shape[-2] != side:
        raise UserError(f"image size {x.shape[-2]}x{side} is not a square that a {grid}x{grid} grid divides; resize it")
    cell = side // grid
    return x.permute(0, 2, 3, 1).contiguous().view(len(x), grid, cell, grid, cell, x.shape[1])


def _baseline(x: Tensor, name: str) -> Tensor:
    choose("baseline", name, BASELINES)
    if name == "zero":
        return torch.zeros_like(x)
    if name == "image_mean":
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    return _blur(x, sigma=x.shape[-1] / 16)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian with reflected borders."""
    reach = min(int(3 * sigma) + 1, x.shape[-1] - 1)
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


def _payoff(logits: Tensor, targets: Tensor, game: str) -> Tensor:
    if game == "margin":
        return margin(logits, targets)
    if game == "probability":
        logits = logits.softmax(dim=1)
    return logits.gather(1, targets[:, None])[:, 0]


@contextlib.contextmanager
def _precision(model: nn.Module, x: Tensor, precision: str) -> Iterator[None]:
    """bf16 autocast with the classifier kept in fp32: differences of logits are what a game is about."""
    if precision == "fp32":
        yield
        return
    linear = final_linear(model, x[:1])

    def in_fp32(features: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(features.float(), linear.weight, linear.bias)

    linear.forward = in_fp32
    try:
        with torch.autocast(x.device.type, torch.bfloat16):
            yield
    finally:
        del linear.forward
