"""The average against its closed form, for weights, float buffers and counters."""

import torch
from torch import nn

from raydd.train.ema import Ema


def test_closed_form():
    """While k / (k + 1) < decay it is the plain mean of the weights seen; afterwards a geometric average."""
    net, decay, values = nn.Linear(1, 1, bias=False).double(), 0.75, [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    ema = Ema(net, decay)
    for k, value in enumerate(values):
        nn.init.constant_(net.weight, value)
        ema.update(net)
        if k <= 3:
            assert torch.allclose(ema.net.weight, torch.tensor([[sum(values[: k + 1]) / (k + 1)]]).double())
    mean = sum(values[:4]) / 4
    expected = decay**2 * mean + decay * (1 - decay) * values[4] + (1 - decay) * values[5]
    assert torch.allclose(ema.net.weight, torch.tensor([[expected]]).double())


def test_buffers():
    net = nn.BatchNorm1d(2)
    ema = Ema(net, 0.5)
    for _ in range(3):
        net(torch.randn(4, 2))
        ema.update(net)
    assert ema.net.num_batches_tracked == 3 and not ema.net.training
    assert not torch.equal(ema.net.running_mean, net.running_mean) and not ema.net.weight.requires_grad
