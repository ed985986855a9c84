"""The frozen random feature net phi of noise optimization ("s16"), with a hand-written gradient to its input.

A 3x3 convolution to 256 channels, then up to three 4x4 stride-2 convolutions in 16 groups that double the channels; all
but the last stride-2 layer end in LeakyReLU(0.01); the map is averaged over its positions. No normalization, PyTorch's
default initialization (the authors' code). Sizes below 28 px have fewer stride-2 layers and 256 * 2**n features; sides
above 64 are first averaged down to 64 (ours).

The last layer is linear and then pooled, so its 16 input taps are pooled first and one small matrix product remains:
exact, and 33.6 M of 110 M multiply-adds become 2.1 M. Weights are frozen, so the gradient needs only the input's side
of every convolution and the signs of the activations; no graph is built. Standardization is left outside: folding it
into the last matrix would change 20 thousand numbers per iteration into 2 million per step (ours).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.keyed import torch_rng
from raydd.models.arithmetic import native_bf16

WIDTH = 256
GROUPS = 16
SLOPE = 0.01
SIDE = 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def num_stages(height: int, width: int) -> int:
    """Stride-2 layers for maps of height x width: at most 3, and none that leaves fewer than 3 positions per side."""
    side = min(height, width, SIDE)
    return max([n for n in (1, 2, 3) if side >> n >= 3], default=0)


def num_features(height: int, width: int) -> int:
    """F, the features of the net for maps of height x width."""
    return WIDTH << num_stages(height, width)


def feature_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """The dtype of the convolutions; `auto` takes bfloat16 where the hardware has it, and fp32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    return DTYPES[precision]


class FeatureNet:
    """phi for inputs [M, Ch, H, W]; drawn from `torch_rng(*key)` on the CPU, so that every device has the same net.

    `dtype` is that of the convolutions; the pooled last stage is fp32 (fp64 where `dtype` is), as are the features
    [M, F]. `features` is F and `positions` the number of positions of the map that is pooled.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *key: object,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        channels, height, width = shape
        rng, stages = torch_rng(*key), num_stages(height, width)
        self.dtype, self.exact = dtype, torch.float64 if dtype == torch.float64 else torch.float32
        side = (min(height, SIDE), min(width, SIDE))
        self.shrink = (
            None
            if side == (height, width)
            else [_averaging(n, m).to(device, self.exact) for n, m in zip((height, width), side)]
        )
        sizes = [(WIDTH, channels, 3)] + [(WIDTH << n, (WIDTH << n - 1) // GROUPS, 4) for n in range(1, stages + 1)]
        weights = [_draw(*size, rng) for size in sizes]
        self.convolutions = [
            (w.to(device, dtype).contiguous(memory_format=torch.channels_last), b.to(device, dtype))
            for w, b in (weights[:-1] if stages else weights)
        ]
        self.features = WIDTH << stages
        for _ in range(max(0, stages - 1)):
            side = tuple((n - 2) // 2 + 1 for n in side)
        self.side = side
        # [positions of the last map but one, taps]: what the pooled taps average. Without a stride-2 layer: one tap.
        self.pool = (
            torch.full((math.prod(side), 1), 1 / math.prod(side), dtype=torch.float64)
            if not stages
            else _tap_pooling(*side)
        )
        self.pool = self.pool.to(device, self.exact)
        self.positions = math.prod(side) if not stages else math.prod((n - 2) // 2 + 1 for n in side)
        self.last = None
        if stages:
            w, b = (t.to(device, self.exact) for t in weights[-1])
            # [F, C/G, 4, 4] -> [G, taps * C/G, F/G]
            matrix = w.view(GROUPS, -1, w.shape[1], 16).permute(0, 3, 2, 1).reshape(GROUPS, -1, w.shape[0] // GROUPS)
            self.last = (w, b, matrix.contiguous())

    def maps(self, x: Tensor) -> Tensor:
        """The map before pooling, [M, F, h, w]; plain operations, so autograd passes through it."""
        a = self._enter(x)
        for layer, (w, b) in enumerate(self.convolutions):
            a = F.leaky_relu(_convolve(a, w, b, layer), SLOPE)
        a = a.to(self.exact)
        return a if self.last is None else _convolve(a, *self.last[:2], 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Features [M, F] of x [M, Ch, H, W]."""
        return self.forward(x)[0]

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features [M, F], and the activations that `backward` needs."""
        a, tape = self._enter(x), []
        for layer, (w, b) in enumerate(self.convolutions):
            a = F.leaky_relu_(_convolve(a, w, b, layer), SLOPE)
            tape.append(a)
        rows = a.permute(0, 2, 3, 1).reshape(len(a), -1, a.shape[1]).to(self.exact)
        taps = self.pool.T @ rows
        if self.last is None:
            return taps.squeeze(1), tape
        _, bias, matrix = self.last
        grouped = taps.view(len(a), -1, GROUPS, a.shape[1] // GROUPS).permute(2, 0, 1, 3).reshape(GROUPS, len(a), -1)
        return torch.bmm(grouped, matrix).transpose(0, 1).reshape(len(a), -1) + bias, tape

    @torch.no_grad()
    def backward(self, tape: list[Tensor], grad: Tensor) -> Tensor:
        """Gradient to the input, [M, Ch, H, W], of sum(grad * features) for grad [M, F]."""
        count, channels = len(grad), tape[-1].shape[1]
        if self.last is None:
            taps = grad[:, None]
        else:
            grouped = grad.view(count, GROUPS, -1).transpose(0, 1)
            taps = torch.bmm(grouped, self.last[2].transpose(1, 2)).view(GROUPS, count, -1, channels // GROUPS)
            taps = taps.permute(1, 2, 0, 3).reshape(count, -1, channels)
        rows = (self.pool @ taps).to(self.dtype)
        g = rows.view(count, *self.side, channels).permute(0, 3, 1, 2)
        for layer in reversed(range(len(self.convolutions))):
            g = torch.ops.aten.leaky_relu_backward(g, tape[layer], SLOPE, True)
            weight = self.convolutions[layer][0]
            g = _convolve_back(g, weight, tape[layer - 1].shape[2:]) if layer else _first_back(g, weight, self.exact)
        return g if self.shrink is None else self.shrink[0].T @ g @ self.shrink[1]

    def _enter(self, x: Tensor) -> Tensor:
        x = x.to(self.exact)
        x = x if self.shrink is None else self.shrink[0] @ x @ self.shrink[1].T
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, layer: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1) if not layer else F.conv2d(x, weight, bias, 2, 1, groups=GROUPS)


def _convolve_back(grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """The transposed stride-2 convolution; `size` is the input's, which the output does not tell."""
    extra = [n - 2 * m for n, m in zip(size, grad.shape[2:])]
    return F.conv_transpose2d(grad, weight, None, 2, 1, extra, GROUPS)


def _first_back(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The transposed 3x3 convolution as one matrix product: libraries are slow where few channels come out."""
    count, width, *side = grad.shape
    columns = grad.permute(0, 2, 3, 1).reshape(-1, width) @ weight.reshape(width, -1)
    return F.fold(columns.to(dtype).view(count, math.prod(side), -1).transpose(1, 2), side, 3, padding=1)


def _draw(out: int, per_group: int, kernel: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias as `nn.Conv2d` draws them: uniform within one over the root of the fan-in."""
    bound = 1 / math.sqrt(per_group * kernel * kernel)
    weight = torch.empty(out, per_group, kernel, kernel).uniform_(-bound, bound, generator=rng)
    return weight, torch.empty(out).uniform_(-bound, bound, generator=rng)


def _averaging(size: int, target: int) -> Tensor:
    """[target, size]: adaptive average pooling of one axis as a matrix."""
    return F.adaptive_avg_pool1d(torch.eye(size, dtype=torch.float64)[None], target)[0].T


def _tap_pooling(height: int, width: int) -> Tensor:
    """[H * W, 16]: the share of input position (y, x) in the pooled tap (ky, kx) of a 4x4 stride-2 pad-1 kernel."""

    def axis(size: int) -> Tensor:
        out = (size - 2) // 2 + 1
        shares = torch.zeros(size, 4, dtype=torch.float64)
        for o in range(out):
            for k in range(4):
                if 0 <= 2 * o + k - 1 < size:
                    shares[2 * o + k - 1, k] += 1 / out
        return shares

    return torch.einsum("ya,xb->yxab", axis(height), axis(width)).reshape(height * width, 16)
