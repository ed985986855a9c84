"""Ranks of a process group as threads of this process: what they broadcast goes through a barrier."""

import threading
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60


class Ranks:
    """Stands for `torch.distributed` in a module; `run` calls a function once per rank, side by side."""

    def __init__(self, world: int) -> None:
        self.world, self.sent = world, None
        self.here, self.barrier = threading.local(), threading.Barrier(world, timeout=PATIENCE_S)

    def broadcast(self, tensor, src: int) -> None:
        if self.here.rank == src:
            self.sent = tensor.clone()
        self.barrier.wait()
        if self.here.rank != src:
            tensor.copy_(self.sent)
        self.barrier.wait()

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work(rank)` returns, by rank; raises what the first rank that failed raised."""
        found, errors = [None] * self.world, []

        def as_rank(rank: int) -> None:
            self.here.rank = rank
            try:
                found[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=as_rank, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found
