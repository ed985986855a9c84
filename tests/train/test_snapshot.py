"""A snapshot survives safetensors and restores weights, average and optimizer exactly."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from raydd.train.ema import Ema
from raydd.train.snapshot import pack, read_record, unpack


def parts(kind):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adamw": torch.optim.AdamW}[kind]
    return net, Ema(net, 0.9), make(net.parameters())


def advance(net, ema, optimizer, seed):
    optimizer.zero_grad()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    net(images).square().sum().backward()
    optimizer.step()
    ema.update(net)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_round_trip(kind):
    first = parts(kind)
    for seed in range(3):
        advance(*first, seed)
    stored = load(save(pack(*first, {"step": 3, "curve": [[1, 0.5]]})))
    second = parts(kind)
    unpack(stored, *second)
    assert read_record(stored)["step"] == 3 and second[1].updates == 3
    for seed in range(3, 6):
        advance(*first, seed)
        advance(*second, seed)
    for a, b in zip(first[:2], second[:2]):
        states = (a.net if isinstance(a, Ema) else a).state_dict(), (b.net if isinstance(b, Ema) else b).state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_snapshot_is_a_copy():
    net, ema, optimizer = parts("sgd")
    advance(net, ema, optimizer, 0)
    stored = pack(net, ema, optimizer, {})
    before = {name: value.clone() for name, value in stored.items()}
    advance(net, ema, optimizer, 1)
    assert all(torch.equal(stored[name], before[name]) for name in stored)
