"""`nn.MultiheadAttention` as an equal module made of Linear layers, so that hooks see its projections.

The packed module multiplies by `in_proj_weight` itself and reads its output projection's weight directly, so no hook
fires. The replacement shares the parameters of the original and computes the same function in eval mode.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearAttention(nn.Module):
    """Multi-head self-attention over tokens [B, T, D] with the parameters of `packed`."""

    # nn.TransformerEncoderLayer asks for these; no packed bias keeps it off its fused path, which skips submodules.
    batch_first = True
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        width = packed.embed_dim
        self.heads = packed.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False, device="meta")
        self.qkv.weight, self.qkv.bias = packed.in_proj_weight, packed.in_proj_bias
        self.out_proj = packed.out_proj
        self.eval()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: object) -> tuple[Tensor, None]:
        """Attend within `query`; key and value must be the same tensor. Masks are not supported."""
        masked = any(options.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
        if key is not query or value is not query or masked:
            raise NotImplementedError("only self-attention without masks is supported")
        batch, rows, width = query.shape
        packed = self.qkv(query).view(batch, rows, 3, self.heads, width // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, rows, width)), None


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is a packed self-attention that `LinearAttention` can stand for."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.batch_first
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def unpack_attention(model: nn.Module) -> None:
    """Replace every packed self-attention inside `model`, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_plain(child):
                setattr(parent, name, LinearAttention(child))
