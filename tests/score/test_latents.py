"""Latents as a table: they depend on seed and key only, and come out of the table as they went in."""

import numpy as np
import pytest
import torch

from raydd.score.latents import LatentEncoder, read_latents

SHAPE = (2, 3, 3)


class Halves:
    """An autoencoder's side of a prior: the mean is known, the deviation is 1."""

    latent_shape, device = SHAPE, "cpu"

    def encode(self, images, noise=None):
        mean = images[:, :2, :3, :3].float() / 255
        return mean if noise is None else mean + noise


def batch(count):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 4, 4, 3), np.uint8), list(range(count)), [f"k{i}" for i in range(count)]


def test_the_mean_comes_back():
    images, labels, keys = batch(5)
    table = LatentEncoder(Halves(), sample=False, batch=2)(images, labels, keys)
    wanted = torch.tensor(images).permute(0, 3, 1, 2)[:, :2, :3, :3].float() / 255
    assert torch.allclose(read_latents(table, SHAPE), wanted, atol=5e-4)
    assert table["key"].to_pylist() == keys and table["label"].to_pylist() == labels


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_draw_depends_on_seed_and_key_only(size):
    images, labels, keys = batch(6)
    whole = read_latents(LatentEncoder(Halves(), seed=1, batch=4)(images, labels, keys), SHAPE)
    order = [4, 1, 5]
    some = LatentEncoder(Halves(), seed=1, batch=size)(
        images[order], [labels[i] for i in order], [keys[i] for i in order]
    )
    assert torch.equal(read_latents(some, SHAPE), whole[order])
    other = read_latents(LatentEncoder(Halves(), seed=2, batch=4)(images, labels, keys), SHAPE)
    # fp16 keeps about three digits of draws of deviation sqrt(2).
    assert (other - whole).std() == pytest.approx(2**0.5, rel=0.25)
