"""AlexNet and VGG-11 in the small forms of the distillation literature (DC, arXiv 2006.05929; GLaD, arXiv 2305.01649).

AlexNet has no normalization layers there. VGG-11 ends in one linear layer; from 128 px on, GLaD pools its map to 7x7
first, whatever the map's side.
"""

from torch import Tensor, nn

from raydd.errors import UserError
from raydd.models.normlayer import make_norm

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class AlexNet(nn.Module):
    """AlexNet of DC and GLaD for [B, 3, S, S] normalized images, S at least 8; returns logits [B, K]."""

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        _require("alexnet_dd", image_size, 8)
        self.features = nn.Sequential(
            *_convolution(3, 128, 5),
            nn.MaxPool2d(2),
            *_convolution(128, 192, 5),
            nn.MaxPool2d(2),
            *_convolution(192, 256, 3),
            *_convolution(256, 192, 3),
            *_convolution(192, 192, 3),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(192 * (image_size // 8) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class VGG(nn.Module):
    """VGG-11 of DC and GLaD for [B, 3, S, S] normalized images, S at least 32; returns logits [B, K]."""

    def __init__(self, num_classes: int, image_size: int, norm: str = "batch"):
        super().__init__()
        _require("vgg11_dd", image_size, 32)
        layers: list[nn.Module] = []
        channels = 3
        for stage in VGG11:
            for width in stage:
                convolution, relu = _convolution(channels, width, 3)
                layers += [convolution, make_norm(norm, width), relu]
                channels = width
            layers.append(nn.MaxPool2d(2))
        side = 7 if image_size >= 128 else image_size // 32
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(side))
        self.classifier = nn.Linear(channels * side * side, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def _convolution(channels: int, width: int, kernel: int) -> tuple[nn.Conv2d, nn.ReLU]:
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU(inplace=True)


def _require(arch: str, image_size: int, least: int) -> None:
    if image_size < least:
        raise UserError(
            f"{arch} needs images of at least {least} px, not {image_size}: choose convnet3 for small images"
        )
