"""Weight decay reaches matrices only where the protocol says so, and the base rate is the architecture's."""

import torch
from torch import nn

from raydd.evaluate.protocols import resolve
from raydd.train.optim import build_optimizer, parameter_groups


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_groups():
    model = net()
    matrices, vectors = parameter_groups(model, 0.01, True)
    assert {p.ndim for p in matrices["params"]} == {2, 4} and matrices["weight_decay"] == 0.01
    assert {p.ndim for p in vectors["params"]} == {1} and vectors["weight_decay"] == 0
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))
    (everything,) = parameter_groups(model, 0.01, False)
    assert len(everything["params"]) == 6 and everything["weight_decay"] == 0.01


def test_rded_is_adamw_and_leaves_biases_alone():
    model = net()
    optimizer = build_optimizer(model, resolve("soft", num_classes=10, ipc=1, image_size=32), "vgg11_dd")
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["lr"] == 5e-4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 5e-4 * 0.01 if p.ndim > 1 else 1
        assert torch.allclose(p, before[name] * factor, rtol=1e-7, atol=0)


def test_hard_is_sgd_with_momentum():
    optimizer = build_optimizer(net(), resolve("hard", num_classes=10, ipc=1, image_size=32), "convnet3")
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.01, 0.9, 5e-4, False)
