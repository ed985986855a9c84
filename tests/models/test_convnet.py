"""The pooling of ConvNet-D by additions against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from raydd.models.convnet import HalfSize


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 7, 9), (3, 1, 2, 5)])
def test_halving_and_its_gradient_are_those_of_average_pooling(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected, found = F.avg_pool2d(x, 2), HalfSize()(x)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_halving_keeps_the_layout():
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    assert HalfSize()(x).is_contiguous(memory_format=torch.channels_last)
