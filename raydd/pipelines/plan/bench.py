"""What probes of a plan's operations run on: the job's source, prior and teacher on one device, and random numbers.

Images are those of the source, in shards from all over it, so that a rate of reading is that of the real place.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from raydd.distill.assemble import open_images
from raydd.distill.encode import encode
from raydd.keyed import numpy_rng, smallest
from raydd.models.prior.base import Differentiable
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.method import Method
from raydd.pipelines.plan.cost import saving
from raydd.pipelines.synthetic import open_prior
from raydd.runtime.stream import decode_unit

# Takes a number of rows, runs an operation once on about so many, and returns how many these were.
Run = Callable[[int], int]
SAMPLE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """One job and method on one device."""

    job: Job
    method: Method
    device: str
    _decoded: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def prior(self) -> Differentiable:
        return open_prior(self.job, self.device)

    @property
    def teacher(self) -> Teacher:
        return self.job.teacher.load(self.device)

    def wait(self) -> None:
        """Until the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers on the device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def latents(self, rows: int) -> torch.Tensor:
        """Standard normal latents [rows, Ch, H, W]."""
        return self.normal(rows, *self.prior.latent_shape)

    def shards(self, size: int) -> Iterator[int]:
        """Read and decode one small shard after the other, without end; the images of each."""
        units = self.job.source.units(SAMPLE)
        for unit in itertools.cycle(units[:: max(1, len(units) // SAMPLE)]):
            yield decode_unit(unit, size).num_rows

    def pixels(self, rows: int, size: int) -> torch.Tensor:
        """uint8 [rows,3,size,size]: images of the source again and again, or noise where none can be read."""
        if size not in self._decoded:
            self._decoded[size] = self._decode(size)
        found = self._decoded[size]
        return found[torch.arange(rows) % len(found)]

    def _decode(self, size: int) -> torch.Tensor:
        keys = self.job.source.index()["key"].to_pylist()
        chosen = [keys[i] for i in smallest(keys, SAMPLE, "plan")]
        images = list(open_images(self.job.source, chosen, size).values())
        if not images:
            images = [torch.from_numpy(numpy_rng("plan").integers(0, 256, (3, size, size), np.uint8))]
        return torch.stack(images)

    def image_bytes(self) -> dict[str, float]:
        """Mean bytes of an encoded image of the source at the working size, by codec and size."""
        of = saving(self.job, self.method).of
        images = self.pixels(SAMPLE, self.job.size)
        return {of: sum(len(encode(image, of.split()[0])) for image in images) / len(images)}
