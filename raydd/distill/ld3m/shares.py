"""Chunks of images dealt to the ranks of a process group, and put together again on every one of them.

Generating images and taking gradients through the prior is the dear part of an iteration, and chunks do not see each
other; the loss, which couples them, is cheap and computed by every rank. What is sent is copied, never summed, so that
any number of ranks gives the same numbers.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Shares:
    """Rank `rank` of `world`, which computes every chunk whose index it has modulo `world`."""

    rank: int = 0
    world: int = 1

    def mine(self, count: int) -> range:
        """Which of `count` chunks this rank computes."""
        return range(self.rank, count, self.world)

    def whole(self, parts: Mapping[int, Tensor], borders: Sequence[slice]) -> Tensor:
        """All rows [N, ...] from this rank's `parts`, by the index of their chunk; each rank has at least one."""
        if self.world == 1:
            return torch.cat(list(parts.values()))
        some = next(iter(parts.values()))
        rows = some.new_empty(borders[-1].stop, *some.shape[1:])
        for index, part in parts.items():
            rows[borders[index]] = part
        self.exchange(rows, borders)
        return rows

    def exchange(self, rows: Tensor, borders: Sequence[slice]) -> None:
        """Fill in, in place, the chunks of `rows` [N, ...] that other ranks hold."""
        if self.world > 1:
            for index, border in enumerate(borders):
                dist.broadcast(rows[border], src=index % self.world)

    def agree(self, answer: bool, device: torch.device | str) -> bool:
        """The answer of rank 0: what each rank finds in the store depends on when it looks."""
        if self.world == 1:
            return answer
        flag = torch.tensor([answer], dtype=torch.uint8, device=device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())
