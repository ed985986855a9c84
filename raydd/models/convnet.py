"""ConvNet-D, the student and teacher of most of the dataset-distillation literature (DC, arXiv 2006.05929).

D blocks of (3x3 convolution, normalization, ReLU, 2x2 average pooling), width 128, then one linear layer on the
flattened map. Depth by image size in the literature: 3 for 32 px, 4 for 64, 5 for 128, 6 for 224 and 256. A map of odd
side loses its last row and column at the pooling, as there. Inputs have three channels; grey ones are decoded to three.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from raydd.errors import UserError
from raydd.models.normlayer import make_norm

WIDTH = 128


class ConvNet(nn.Module):
    """ConvNet-D for [B, 3, S, S] normalized images; returns logits [B, K]."""

    def __init__(self, depth: int, num_classes: int, image_size: int, width: int = WIDTH, norm: str = "batch"):
        super().__init__()
        side = image_size >> depth
        if side < 1:
            raise UserError(
                f"convnet{depth} halves the image {depth} times and needs at least {1 << depth} px, not {image_size}: "
                f"choose convnet{max(1, image_size.bit_length() - 1)} or a larger --size"
            )
        self.features = nn.Sequential(*[_block(3 if i == 0 else width, width, norm) for i in range(depth)])
        self.classifier = nn.Linear(width * side * side, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class HalfSize(nn.Module):
    """The mean of every 2 x 2 pixels: `AvgPool2d(2)`, on CPUs by additions, in a third of the time."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.avg_pool2d(x, 2)
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        # `unbind`, not slices: their gradients would each be scattered into zeros of full size, and then added.
        upper, lower = x[..., : 2 * height, : 2 * width].unflatten(-2, (height, 2)).unbind(-2)
        left, right = (upper + lower).unflatten(-1, (width, 2)).unbind(-1)
        return (left + right) * 0.25


def _block(channels: int, width: int, norm: str) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, padding=1)
    return nn.Sequential(convolution, make_norm(norm, width), nn.ReLU(inplace=True), HalfSize())
