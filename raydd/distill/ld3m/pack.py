"""The images that are optimized together, and their draws: keyed by class name, image and iteration, never by order."""

import dataclasses

import torch
from torch import Tensor

from raydd.keyed import torch_rng


@dataclasses.dataclass(frozen=True)
class Pack:
    """`ipc` images of each of some classes. names: theirs; labels: their indices among all `num_classes` of the run."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    num_classes: int
    ipc: int
    seed: int

    def __len__(self) -> int:
        return len(self.names) * self.ipc

    @property
    def name(self) -> str:
        """The only class's name, or the first's and how many more."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]}+{len(self.names) - 1}"

    def each(self, values: tuple[int, ...]) -> Tensor:
        """int64 [N]: one value per class, repeated for its images."""
        return torch.tensor(values, dtype=torch.int64).repeat_interleave(self.ipc)

    def noise(self, shape: tuple[int, ...], purpose: str, iteration: int | None = None) -> Tensor:
        """Standard normal fp32 [N, *shape] on the CPU, an own draw for every class, image and iteration."""
        keys = [(name, index) for name in self.names for index in range(self.ipc)]
        draws = [torch.randn(shape, generator=torch_rng(self.seed, purpose, *key, iteration)) for key in keys]
        return torch.stack(draws)
