"""The affine map equals jitter applied operation by operation, in every order; lighting has AlexNet's covariance."""

import itertools

import numpy as np
import pytest
import torch

from raydd.augment import color


def grey(x):
    return (x * x.new_tensor(color.GREY)[:, None, None]).sum(0, keepdim=True)


OPERATIONS = {
    "brightness": lambda x, b: b * x,
    "contrast": lambda x, c: c * x + (1 - c) * grey(x).mean(),
    "saturation": lambda x, s: s * x + (1 - s) * grey(x),
}


@pytest.mark.parametrize("order", list(itertools.permutations(OPERATIONS)))
def test_any_order_gives_the_same(order):
    images = torch.rand(6, 3, 5, 7, dtype=torch.float64)
    params = color.draw_color(np.random.default_rng(0).random((6, 6)), (0.4, 0.4, 0.4), 0.1)
    result = color.apply_color(images, params)
    for i, image in enumerate(images):
        for name in order:
            image = OPERATIONS[name](image, getattr(params, name)[i].double())
        expected = image + params.light[i].double()[:, None, None]
        assert torch.allclose(result[i], expected, atol=1e-12)


def test_factors_are_uniform_in_their_range():
    params = color.draw_color(np.random.default_rng(0).random((20000, 6)), (0.4, 0.2, 0.0), 0.1)
    assert abs(params.brightness.min() - 0.6) < 1e-3 and abs(params.brightness.max() - 1.4) < 1e-3
    assert abs(params.contrast.std() - 0.4 / 12**0.5) < 3e-3
    assert (params.saturation == 1).all()


def test_lighting_covariance():
    light = color.draw_color(np.random.default_rng(0).random((200000, 6)), (0, 0, 0), 0.1).light.double()
    vectors, values = torch.tensor(color.EIGENVECTORS).double(), torch.tensor(color.EIGENVALUES).double()
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    assert torch.allclose(torch.cov(light.T), expected, atol=5e-6)


def test_zero_uniform_stays_finite():
    assert color.draw_color(np.zeros((1, 6)), (0.4, 0.4, 0.4), 0.1).light.isfinite().all()
