"""Residual networks that torchvision does not have: the CIFAR ones, and ResNetAP of IDC.

* CIFAR ResNet-20/32/56 (arXiv 1512.03385, section 4.2): three stages of width 16, 32, 64 and option-A shortcuts, which
  take every second pixel and pad channels with zeros, so they have no parameters. Parameter names are those of the
  widespread public CIFAR-10 checkpoints.
* ResNet-18 for small images: torchvision's, with a 3x3 stem of stride 1 and no max-pooling.
* ResNetAP-10 (IDC, arXiv 2205.14959): one block per stage; average pooling takes the place of every stride; the stem is
  7x7 with 4x4 pooling above 128 px, 3x3 with 2x2 pooling above 64 px, 3x3 without pooling below. Convolutions start
  from N(0, 2 / (k k C_out)) as there. IDC's own CIFAR variant is another, narrower net.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from raydd.errors import UserError
from raydd.models.normlayer import make_norm
from raydd.models.torchvisions import torchvision_models

CIFAR_WIDTH = 16
AP_WIDTH = 64


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut."""

    def __init__(self, channels: int, width: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.stride, self.extra = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.extra:
            before = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-`depth`, depth = 6 n + 2, for [B, 3, S, S] normalized images; returns logits [B, K]."""

    def __init__(self, depth: int, num_classes: int, width: int = CIFAR_WIDTH, norm: str = "batch"):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest:
            raise ValueError(f"depth {depth} is not 6 n + 2")
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.layer1 = self._stage(width, width, blocks, 1, norm)
        self.layer2 = self._stage(width, 2 * width, blocks, 2, norm)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2, norm)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels: int, width: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
        first = CifarBlock(channels, width, stride, norm)
        return nn.Sequential(first, *[CifarBlock(width, width, 1, norm) for _ in range(blocks - 1)])

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class PooledBlock(nn.Module):
    """Basic residual block whose downsampling is average pooling by `pool`, on both branches."""

    def __init__(self, channels: int, width: int, pool: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm1 = make_norm(norm, width)
        self.pool = nn.AvgPool2d(pool)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm2 = make_norm(norm, width)
        self.shortcut = nn.Identity()
        if pool > 1 or channels != width:
            project = nn.Conv2d(channels, width, 1, bias=norm == "none")
            self.shortcut = nn.Sequential(project, nn.AvgPool2d(pool), make_norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNetAP10(nn.Module):
    """ResNetAP-10 for [B, 3, S, S] normalized images, S at least 8; returns logits [B, K]."""

    def __init__(self, num_classes: int, image_size: int, width: int = AP_WIDTH, norm: str = "batch"):
        super().__init__()
        if image_size < 8:
            raise UserError(f"resnetap10 needs images of at least 8 px, not {image_size}: choose convnet2")
        kernel, pool = (7, 4) if image_size > 128 else (3, 2) if image_size > 64 else (3, 1)
        stem = nn.Conv2d(3, width, kernel, padding=kernel // 2, bias=norm == "none")
        self.stem = nn.Sequential(stem, make_norm(norm, width), nn.ReLU(inplace=True), nn.AvgPool2d(pool))
        self.layer1 = PooledBlock(width, width, 1, norm)
        self.layer2 = PooledBlock(width, 2 * width, 2, norm)
        self.layer3 = PooledBlock(2 * width, 4 * width, 2, norm)
        self.layer4 = PooledBlock(4 * width, 8 * width, 2, norm)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return self.fc(x.mean((2, 3)))


def resnet18_cifar(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem of stride 1 and no max-pooling, batch norm, for images up to 64 px."""
    model = torchvision_models().resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
