"""Denoisers to train from scratch, built from diffusers' own classes so that diffusers opens what is written.

A UNet's last class embedding, and a DiT's by construction, is the null label. Both start by predicting zero: the DiT as
adaLN-Zero (arXiv 2212.09748, section 3.2), which diffusers leaves to the trainer, the UNet by its last convolution.
"""

from dataclasses import dataclass

import torch
from torch import nn

from raydd.errors import UserError
from raydd.keyed import hash64

GROUPS = 8
HEAD = 32  # channels of an attention head of a UNet, at most


@dataclass(frozen=True)
class UNetShape:
    """`channels` per level, each half the size of the one before; `attention` are the levels with self-attention."""

    channels: tuple[int, ...]
    attention: tuple[int, ...] = ()
    layers: int = 1


@dataclass(frozen=True)
class DiTShape:
    """Transformer blocks, width in heads of 64, and the side of a patch."""

    depth: int
    heads: int
    patch: int = 2


Shape = UNetShape | DiTShape


def build_denoiser(shape: Shape, *, channels: int, size: int, num_classes: int, seed: int) -> nn.Module:
    """A fresh class-conditional network on latents [n, channels, size, size], in evaluation mode; null = num_classes.

    It has no dropout, and diffusers' own label dropout acts in training mode only (independently in every block of a
    DiT), so it is trained in evaluation mode with explicit null labels.
    """
    step = shape.patch if isinstance(shape, DiTShape) else 2 ** (len(shape.channels) - 1)
    if size % step:
        raise UserError(f"latents of {size} x {size} do not divide by {step}: choose a --size that does")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash64("prior", seed) >> 1)
        build = _dit if isinstance(shape, DiTShape) else _unet
        return build(shape, channels, size, num_classes).eval()


def _unet(shape: UNetShape, channels: int, size: int, num_classes: int) -> nn.Module:
    from diffusers import UNet2DModel

    levels = range(len(shape.channels))
    net = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.channels,
        down_block_types=tuple("AttnDownBlock2D" if i in shape.attention else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in shape.attention else "UpBlock2D" for i in reversed(levels)),
        layers_per_block=shape.layers,
        norm_num_groups=GROUPS,
        attention_head_dim=min(HEAD, *shape.channels),
        num_class_embeds=num_classes + 1,
    )
    nn.init.zeros_(net.conv_out.weight)
    nn.init.zeros_(net.conv_out.bias)
    return net


def _dit(shape: DiTShape, channels: int, size: int, num_classes: int) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=channels,
        num_layers=shape.depth,
        sample_size=size,
        patch_size=shape.patch,
        num_embeds_ada_norm=num_classes,
    )
    for linear in [block.norm1.linear for block in net.transformer_blocks] + [net.proj_out_1, net.proj_out_2]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return net
