"""The small vision transformer of GLaD and LD3M (arXiv 2305.01649): 8x8 patches, 512 wide, 10 deep, 8 heads.

A patch has a side of S/8 (16 px at 128). GLaD removes every LayerNorm, which is the default here; `norm='layer'` puts
them back in front of each branch and of the classifier. Its dropout of .1 is left out, because a dropout mask would
come from torch's global generator (ours). Attention is written out, because gradient matching
differentiates twice, which the fused kernels do not support on a GPU.
"""

import torch
from torch import Tensor, nn

from raydd.errors import UserError

WIDTH, DEPTH, HEADS, PATCHES = 512, 10, 8, 8


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, T, D], bias-free query, key and value."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, count, width))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a residual connection."""

    def __init__(self, width: int, heads: int, norm: str):
        super().__init__()
        self.norm1, self.norm2 = _norm(width, norm), _norm(width, norm)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ViT(nn.Module):
    """Vision transformer for [B, 3, S, S] normalized images, S divisible by 8; returns logits [B, K]."""

    def __init__(self, num_classes: int, image_size: int, width: int = WIDTH, norm: str = "none"):
        super().__init__()
        if image_size % PATCHES:
            raise UserError(f"vit_dd needs an image size divisible by {PATCHES}, not {image_size}: choose --size 128")
        if width % HEADS:
            raise UserError(f"vit_dd needs a width divisible by its {HEADS} heads, not {width}: choose --width {WIDTH}")
        side = image_size // PATCHES
        self.embed = nn.Conv2d(3, width, side, stride=side)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, PATCHES * PATCHES + 1, width))
        self.blocks = nn.Sequential(*[Block(width, HEADS, norm) for _ in range(DEPTH)])
        self.norm = _norm(width, norm)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


def _norm(width: int, kind: str) -> nn.Module:
    return nn.LayerNorm(width) if kind == "layer" else nn.Identity()
