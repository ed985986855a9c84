"""Latents of real images under a prior's autoencoder, as a table of one row per image (dsco.md, section 3.2).

One sample of the autoencoder's posterior per image, drawn by (seed, image key), so that a latent depends on its image
only; or the posterior's mean. Stored as float16, which halves the table and costs less than the posterior's own noise.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from raydd.keyed import torch_rng
from raydd.models.prior.base import Prior
from raydd.score.batches import padded_batches, to_pixels
from raydd.score.table import list_column


class LatentEncoder:
    """`encoder(images, labels, keys)` gives key, label and latent (float16, flattened [Ch,H,W])."""

    def __init__(self, prior: Prior, *, sample: bool = True, seed: int = 0, batch: int = 64) -> None:
        self.prior, self.sample, self.seed, self.batch = prior, sample, seed, batch

    @torch.no_grad()
    def __call__(self, images: np.ndarray, labels: Sequence[int], keys: Sequence[str]) -> pa.Table:
        """Images uint8 [n,S,S,3] at the prior's size, labels and keys of one unit; rows in the order given."""
        pixels = to_pixels(images)
        parts = []
        for rows, real in padded_batches(len(keys), self.batch):
            noise = self._noise([keys[i] for i in rows]) if self.sample else None
            latents = self.prior.encode(pixels[rows].to(self.prior.device), noise)
            parts.append(latents[:real].half().flatten(1).cpu())
        columns = {
            "key": pa.array(keys),
            "label": pa.array(labels, pa.int32()),
            "latent": list_column(torch.cat(parts)),
        }
        return pa.table(columns)

    def _noise(self, keys: Sequence[str]) -> torch.Tensor:
        draws = [torch.randn(self.prior.latent_shape, generator=torch_rng("latent", self.seed, key)) for key in keys]
        return torch.stack(draws).to(self.prior.device)


def read_latents(table: pa.Table, shape: tuple[int, int, int]) -> torch.Tensor:
    """The rows of such a table as fp32 [n,Ch,H,W]."""
    column = table["latent"].combine_chunks()
    flat = np.asarray(column.flatten()).reshape(len(column), *shape)
    return torch.from_numpy(flat.astype(np.float32))
