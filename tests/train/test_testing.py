"""Accuracies against counting by hand; iterables and split validation sets."""

import math

import pytest
import torch
from torch import nn

from raydd.models.normalization import Normalization
from raydd.train.sets import ValSet
from raydd.train.testing import measure_accuracy

PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)
CPU = torch.device("cpu")


class FirstPixels(nn.Module):
    """Logits are the first seven values of the image."""

    def forward(self, x):
        return x.flatten(1)[:, :7]


def val_set(count=600):
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
    # Distinct values: ties could be ranked either way.
    images.view(count, -1)[:, :7] = torch.rand(count, 7, generator=generator).argsort(dim=1).byte() * 30
    return ValSet(images, torch.randint(0, 6, (count,), generator=generator))


def test_counts():
    val = val_set()
    found = measure_accuracy(FirstPixels(), val, PLAIN, 7, device=CPU)
    logits = val.images.flatten(1)[:, :7].float() / 255
    order = logits.argsort(dim=1, descending=True)
    assert found.count == 600
    assert found.top1 == pytest.approx((order[:, 0] == val.labels).double().mean().item())
    assert found.top5 == pytest.approx((order[:, :5] == val.labels[:, None]).any(1).double().mean().item())
    for k in range(6):
        assert found.per_class[k] == pytest.approx((order[:, 0] == k)[val.labels == k].double().mean().item())
    assert math.isnan(found.per_class[6])


def test_any_iterable_of_batches():
    val = val_set()
    batches = [(val.images[:100], val.labels[:100]), (val.images[100:], val.labels[100:])]
    assert measure_accuracy(FirstPixels(), batches, PLAIN, 7, device=CPU).top1 == pytest.approx(
        measure_accuracy(FirstPixels(), val, PLAIN, 7, device=CPU).top1
    )


def test_training_flag_and_empty_set():
    net = FirstPixels().train()
    measure_accuracy(net, val_set(9), PLAIN, 7, device=CPU)
    assert net.training
    with pytest.raises(ValueError, match="empty"):
        measure_accuracy(net, [], PLAIN, 7, device=CPU)
