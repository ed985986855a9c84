"""Normalization against its formula in float64, its inverse on every pixel value, and statistics against numpy."""

import numpy as np
import pytest
import torch

from raydd.models.normalization import IMAGENET, Normalization, measure


def pixels(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_apply_is_the_formula():
    images = pixels((4, 3, 5, 6))
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    expected = (images.numpy() / 255.0 - mean) / std
    got = IMAGENET.apply(images)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    assert torch.equal(got, IMAGENET.apply(images.float() / 255))


def test_every_pixel_value_survives_the_round_trip():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(IMAGENET.to_uint8(IMAGENET.apply(images)), images)


def test_to_uint8_clamps_and_rounds():
    unit = Normalization((0.0,), (1.0,))
    values = torch.tensor([-1.0, 0.499 / 255, 0.501 / 255, 2.0]).view(1, 1, 2, 2)
    assert unit.to_uint8(values).flatten().tolist() == [0, 0, 1, 255]
    assert torch.equal(unit.invert(values), values)


def test_measure_equals_numpy_also_across_chunks():
    images = pixels((5000, 3, 2, 3))
    found = measure(images)
    values = images.numpy() / 255.0
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.std, values.std((0, 2, 3)), atol=1e-6)
    assert measure(images.flip(0)) == found


def test_constant_channel_stays_finite():
    found = measure(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert min(found.std) > 0


def test_misuse():
    with pytest.raises(ValueError, match="uint8"):
        measure(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="positive"):
        Normalization((0.5,), (0.0,))
