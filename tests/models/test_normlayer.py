"""Norms by name against per-sample statistics, and their exchange in a finished network."""

import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.models.normlayer import NORMS, make_norm, replace_batch_norm


@pytest.mark.parametrize(("kind", "dims"), [("instance", (2, 3)), ("layer", (1, 2, 3)), ("batch", (0, 2, 3))])
def test_statistics(kind, dims):
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64) * 3 + 2
    expected = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(make_norm(kind, 8).double().train()(x), expected)


def test_none_is_the_identity_and_all_names_work():
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(make_norm("none", 8)(x), x)
    assert all(make_norm(kind, 8)(x).shape == x.shape for kind in NORMS)
    with pytest.raises(UserError, match="did you mean 'batch'"):
        make_norm("bach", 8)


def test_exchange_is_deep_and_reports_networks_without_batch_norm():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    assert replace_batch_norm(net, "instance")
    assert [type(m) for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))] == [nn.GroupNorm] * 2
    assert not replace_batch_norm(net, "instance")
