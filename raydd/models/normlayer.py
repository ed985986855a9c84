"""Normalization layers of classifiers by name, and the exchange of those of a finished network.

The dataset-distillation literature trains students with instance norm, written as GroupNorm(C, C); RDED and InfoUtil
teachers have batch norm. `layer` is GroupNorm(1, C), which has one weight per channel and fits any image size (ours;
the literature's LayerNorm([C, H, W]) has one per position).
"""

from torch import nn

from raydd.errors import choose

NORMS = ("batch", "instance", "group", "layer", "none")
GROUPS = 4


def make_norm(kind: str, channels: int) -> nn.Module:
    """Normalization of [B, channels, H, W] maps, affine, weights 1 and biases 0; `none` is the identity.

    Raises `UserError` for an unknown kind and `ValueError` if `group` does not divide the channels.
    """
    match choose("norm", kind, NORMS):
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(GROUPS, channels)
        case "layer":
            return nn.GroupNorm(1, channels)
    return nn.Identity()


def replace_batch_norm(model: nn.Module, kind: str) -> bool:
    """Put `kind` in place of every BatchNorm2d of `model`, in place; tells whether the model has any.

    Convolutions without bias stay without one, also for `none`.
    """
    found = False
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                found = True
                if kind != "batch":
                    setattr(module, name, make_norm(kind, child.num_features))
    return found
