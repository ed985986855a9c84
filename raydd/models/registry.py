"""Classifiers by name: the distillation literature's networks, and every classifier of torchvision.

| name | network | norm, unless said otherwise |
|---|---|---|
| `convnet3` .. `convnet6`, any `convnetD` | ConvNet-D, width 128 | batch (RDED teachers and students) |
| `convnet3w64`, any `convnetDwW` | ConvNet-D, width W | batch |
| `resnet18` | torchvision's | batch |
| `resnet18_cifar` | the same, 3x3 stem, no max-pooling | batch |
| `resnetap10` | IDC's ResNetAP-10, width 64 | batch |
| `cifar_resnet20`, `32`, `56` | CIFAR ResNets with option-A shortcuts, width 16 | batch |
| `vgg11_dd` | VGG-11 of DC and GLaD | batch |
| `alexnet_dd` | AlexNet of DC and GLaD | none, always |
| `vit_dd` | ViT of GLaD | none; `layer` possible |
| `NAME` or `torchvision/NAME` | torchvision's | its own; every BatchNorm2d is exchanged on demand |

The protocols `hard` and `glad` ask for `instance`. A network that has no such layers keeps its form: `effective_norm`
tells which norm a name and a wish lead to, so that one protocol can name one norm for all of its students.
"""

import re

import torch
from torch import nn

from raydd.errors import UserError, choose
from raydd.keyed import hash64
from raydd.models.classic import VGG, AlexNet
from raydd.models.convnet import WIDTH, ConvNet
from raydd.models.normlayer import NORMS, replace_batch_norm
from raydd.models.resnet import CifarResNet, ResNetAP10, resnet18_cifar
from raydd.models.torchvisions import torchvision_models, torchvision_names
from raydd.models.vit import ViT

ARCHS = (
    "convnet3",
    "convnet4",
    "convnet5",
    "convnet6",
    "resnet18",
    "resnet18_cifar",
    "resnetap10",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet56",
    "alexnet_dd",
    "vgg11_dd",
    "vit_dd",
)
PREFIX = "torchvision/"
OWN = "own"  # a torchvision network's own normalization, whatever it is


def resolve_arch(arch: str) -> str:
    """Canonical name of a known architecture (torchvision's as `torchvision/NAME`, except `resnet18`).

    Raises `UserError` with the nearest name and the list for an unknown one.
    """
    name = arch.removeprefix(PREFIX)
    if arch == name and (convnet := _convnet(name)):
        depth, width = convnet
        return f"convnet{depth}" + (f"w{width}" if width != WIDTH else "")
    if name == "resnet18" or (arch == name and name in ARCHS):
        return name
    if name in torchvision_names():
        return PREFIX + name
    if arch != name:
        return choose("torchvision network", name, torchvision_names())
    return choose("network", arch, [*ARCHS, "torchvision/NAME"])


def build_model(
    arch: str,
    *,
    num_classes: int,
    image_size: int,
    norm: str | None = None,
    width: int | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A fresh network, float [B, 3, image_size, image_size] -> logits float [B, num_classes]; CPU, training mode.

    Equal seeds give equal parameters whatever the state of torch's generator, which stays untouched; no seed means
    seed 0. Raises `UserError` for an unknown name or norm, a width that the network does not have, or a size too small.
    """
    arch = resolve_arch(arch)
    if norm is not None:
        choose("norm", norm, NORMS)
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, not {num_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hash64("init", arch, seed or 0) >> 1)
        return _construct(arch, num_classes, image_size, effective_norm(arch, norm), width)


def check_fits(arch: str, *, num_classes: int, image_size: int, norm: str | None = None) -> None:
    """Raise `UserError` if `build_model` refuses, or if the network would learn nothing from images of this size.

    An instance norm of single pixels gives zero whatever the image (ResNet-18 at 32 px and below), and no error.
    """
    with torch.device("meta"):
        net = build_model(arch, num_classes=num_classes, image_size=image_size, norm=norm).eval()

    others = " or ".join(default_students(image_size))

    def refuse(module: nn.GroupNorm, inputs: tuple[torch.Tensor]) -> None:
        if module.num_groups == module.num_channels and inputs[0][0, 0].numel() == 1:
            raise UserError(
                f"{arch} with instance norm needs larger images than {image_size} px: its last maps are single pixels, "
                f"which the norm sets to zero; choose {others}"
            )

    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(refuse)
    try:
        with torch.no_grad():
            net(torch.empty(2, 3, image_size, image_size, device="meta"))
    except RuntimeError as error:
        raise UserError(f"{arch} does not take images of {image_size} px ({error}); choose {others}") from error


def effective_norm(arch: str, norm: str | None) -> str:
    """Norm that `build_model(arch, norm=norm)` builds; `own` for torchvision's networks left as they are."""
    arch = resolve_arch(arch)
    if arch.startswith(PREFIX):
        return norm or OWN
    if arch == "alexnet_dd":
        return "none"
    if arch == "vit_dd":
        return "layer" if norm == "layer" else "none"
    return norm or "batch"


def default_students(image_size: int) -> list[str]:
    """Students of `raydd evaluate` by image size: a ConvNet of the literature's depth and residual networks."""
    if image_size <= 32:
        return ["convnet3", "resnet18_cifar"]
    if image_size <= 64:
        return ["convnet4", "resnet18_cifar"]
    if image_size <= 128:
        return ["convnet5", "resnet18"]
    return ["convnet6", "resnetap10", "resnet18"]


def classifier_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the last layer with weights that yields the logits: the last Linear, else the last Conv2d."""
    for kind in (nn.Linear, nn.Conv2d):
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise ValueError(f"{type(model).__name__} has neither a linear nor a convolutional layer")


def _convnet(arch: str) -> tuple[int, int] | None:
    """Depth and width of a ConvNet by its name."""
    match = re.fullmatch(r"convnet([1-9])(?:w([1-9]\d{0,4}))?", arch)
    return (int(match[1]), int(match[2] or WIDTH)) if match else None


def _construct(arch: str, num_classes: int, image_size: int, norm: str, width: int | None) -> nn.Module:
    wide = {} if width is None else {"width": width}
    if convnet := _convnet(arch):
        depth, named = convnet
        if width is not None and named not in (width, WIDTH):
            raise UserError(f"{arch} has width {named} by its name, not {width}: leave --width out")
        return ConvNet(depth, num_classes, image_size, norm=norm, width=named if width is None else width)
    if arch.startswith("cifar_resnet"):
        return CifarResNet(int(arch.removeprefix("cifar_resnet")), num_classes, norm=norm, **wide)
    if arch == "resnetap10":
        return ResNetAP10(num_classes, image_size, norm=norm, **wide)
    if arch == "vit_dd":
        return ViT(num_classes, image_size, norm=norm, **wide)
    if width is not None:
        raise UserError(f"{arch} has a fixed width, not {width}: leave --width out, or choose convnet3, resnetap10 ...")
    if arch == "alexnet_dd":
        return AlexNet(num_classes, image_size)
    if arch == "vgg11_dd":
        return VGG(num_classes, image_size, norm=norm)
    model = resnet18_cifar(num_classes) if arch == "resnet18_cifar" else _torchvision(arch, num_classes, image_size)
    if norm != OWN:
        replace_batch_norm(model, norm)
    return model


def _torchvision(arch: str, num_classes: int, image_size: int) -> nn.Module:
    name = arch.removeprefix(PREFIX)
    options: dict[str, object] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads change the output's type in training; init_weights only silences a warning about its cost.
        options |= {"aux_logits": False, "init_weights": True}
    return torchvision_models().get_model(name, **options)
