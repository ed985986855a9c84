"""Class conditions as vectors that can be learned: the embedders of a frozen denoiser made to let them through.

A label selects a row of an embedding table; LD3M (arXiv 2403.03881) learns the row itself, one per image. Every
embedder is wrapped once: labels go to its table as before, float conditions pass as they are, so that both give the
same bits. A DiT of diffusers has a table in every block. Where these are equal (weights converted from the original
release) a condition is one row [D]; where they differ (trained in diffusers) it is one row for each of K blocks [K, D].
"""

import torch
from torch import Tensor, nn

from raydd.errors import UserError


class LabelOrCondition(nn.Module):
    """`embedder` for integer labels [n]; float conditions [n, D], or row `index` of [n, K, D], are let through."""

    def __init__(self, embedder: nn.Module, index: int):
        super().__init__()
        self.embedder, self.index = embedder, index

    def forward(self, condition: Tensor, *args: object, **options: object) -> Tensor:
        if not condition.is_floating_point():
            return self.embedder(condition, *args, **options)
        return condition if condition.dim() == 2 else condition[:, self.index]


def open_conditions(net: nn.Module) -> Tensor | None:
    """Wrap the embedders of a DiT or UNet of diffusers, once, and return their table.

    float32 [labels, D], or [labels, K, D] where K blocks have tables of their own; the null label's row is among them.
    None for an unconditional network. Raises `UserError` that names what stands where an embedder was expected.
    """
    places = _places(net)
    if not places:
        return None
    tables = []
    for index, (owner, name) in enumerate(places):
        found = getattr(owner, name)
        if not isinstance(found, LabelOrCondition):
            found = LabelOrCondition(found, index)
            setattr(owner, name, found)
        tables.append(_table(found.embedder, net))
    if all(torch.equal(table, tables[0]) for table in tables[1:]):
        return tables[0]
    return torch.stack(tables, 1)


def _places(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """(owner, attribute) of every label embedder, in the order of the blocks."""
    if (blocks := getattr(net, "transformer_blocks", None)) is not None:
        # The output layer asks the first block's.
        norms = [getattr(block, "norm1", block) for block in blocks]
        for norm in norms:
            if not hasattr(getattr(norm, "emb", None), "class_embedder"):
                raise UserError(
                    f"a block of {type(net).__name__} has a {type(norm).__name__} where raydd expected one with a "
                    "class embedder: its conditions cannot be learned, use another prior"
                )
        return [(norm.emb, "class_embedder") for norm in norms]
    return [(net, "class_embedding")] if getattr(net, "class_embedding", None) is not None else []


def _table(embedder: nn.Module, net: nn.Module) -> Tensor:
    table = getattr(embedder, "embedding_table", embedder)
    if not isinstance(table, nn.Embedding):
        raise UserError(
            f"{type(net).__name__} embeds classes by a {type(table).__name__}, where raydd expected an Embedding: its "
            "conditions cannot be learned, use another prior"
        )
    return table.weight.detach().float().clone()
