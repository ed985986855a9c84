"""Squared norm of a layer's own parameter gradient, per sample, from the layer's input a and output gradient g.

InfoUtil, section 5 (gradient-norm score). One rule per layer type: rule(layer, a, g, scratch) -> [B], with a [B, ...],
g [B, ...] and `scratch` the bytes that the rule may take beside them. sq() = sum of squares over all but the sample.

    Linear     one row: sq(a) sq(g);  T rows: instantiated sq(g'a), or ghost sum of (aa') * (gg'), the cheaper one
    Conv2d     `conv_rule`
    norms      sq(sum_t g xhat) + sq(sum_t g), xhat the normalized input (running statistics for batch norm)
    Embedding  rows of g that share an id add up

A bias adds sq(sum_t g).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.score.conv_rule import conv_norm, sq, sub_batches

Rule = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


def linear_norm(layer: nn.Linear, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """nn.Linear on a [B, D] or [B, ..., D]."""
    if a.ndim == 2:
        return sq(g) * (sq(a) + (layer.bias is not None))
    a, g = a.flatten(1, -2), g.flatten(1, -2)
    rows, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    ghost = rows * (inputs + outputs) < inputs * outputs
    size = 2 * rows * rows if ghost else inputs * outputs
    parts = []
    for part in sub_batches(len(a), size * a.element_size(), scratch):
        parts.append(row_ghost(a[part], g[part]) if ghost else sq(g[part].mT @ a[part]))
    total = torch.cat(parts)
    return total if layer.bias is None else total + sq(g.sum(dim=1))


def row_ghost(a: Tensor, g: Tensor) -> Tensor:
    """sq(g'a) per sample from the two Gram matrices of the rows: a [B, T, D], g [B, T, O] -> [B]."""
    return torch.linalg.vecdot((a @ a.mT).flatten(1), (g @ g.mT).flatten(1))


def batch_norm_norm(layer: nn.Module, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """BatchNorm in eval mode: xhat is affine in a, so two sums over positions do."""
    total, inner = _over_positions(g), _over_positions(g * a)
    weight = (inner - layer.running_mean * total) * (layer.running_var + layer.eps).rsqrt()
    return sq(weight) + sq(total)


def group_norm_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """GroupNorm; parameters per channel."""
    return _channel_norm(F.group_norm(a, layer.num_groups, eps=layer.eps), g)


def instance_norm_norm(layer: nn.Module, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """InstanceNorm in eval mode; parameters per channel."""
    own = not layer.track_running_stats
    xhat = F.instance_norm(a, layer.running_mean, layer.running_var, use_input_stats=own, eps=layer.eps)
    return _channel_norm(xhat, g)


def _channel_norm(xhat: Tensor, g: Tensor) -> Tensor:
    return sq(_over_positions(g * xhat)) + sq(_over_positions(g))


def _over_positions(x: Tensor) -> Tensor:
    return x.sum(dim=tuple(range(2, x.ndim))) if x.ndim > 2 else x


def layer_norm_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """LayerNorm; parameters per element of the normalized shape."""
    xhat = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    over = tuple(range(1, a.ndim - len(layer.normalized_shape)))
    weight, bias = (g * xhat, g) if not over else ((g * xhat).sum(dim=over), g.sum(dim=over))
    return sq(weight) if layer.bias is None else sq(weight) + sq(bias)


def layer_norm_2d_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, scratch: int) -> Tensor:
    """LayerNorm over the channels of [B, C, H, W], as in ConvNeXt."""
    return layer_norm_norm(layer, a.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1), scratch)


def embedding_norm(layer: nn.Embedding, ids: Tensor, g: Tensor, scratch: int) -> Tensor:
    """Embedding of ids [B, ...]; the padding id has no gradient."""
    ids, g = ids.flatten(1), g.flatten(1, -2)
    same = ids[:, :, None] == ids[:, None, :]
    if layer.padding_idx is not None:
        same &= (ids != layer.padding_idx)[:, :, None]
    return ((g @ g.mT) * same).sum(dim=(1, 2))


RULES: dict[type, Rule] = {
    nn.Linear: linear_norm,
    nn.modules.linear.NonDynamicallyQuantizableLinear: linear_norm,
    nn.Conv2d: conv_norm,
    nn.BatchNorm1d: batch_norm_norm,
    nn.BatchNorm2d: batch_norm_norm,
    nn.GroupNorm: group_norm_norm,
    nn.InstanceNorm2d: instance_norm_norm,
    nn.LayerNorm: layer_norm_norm,
    nn.Embedding: embedding_norm,
}


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for exactly this type (a subclass may compute something else), or None."""
    if isinstance(layer, nn.LayerNorm) and type(layer).__name__ == "LayerNorm2d":
        return layer_norm_2d_norm
    return RULES.get(type(layer))
