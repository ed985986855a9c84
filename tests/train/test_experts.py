"""Experts: the training is that of a plain module, snapshots are copies, and everything hangs on (recipe, index)."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from raydd.augment.dsa import apply_dsa, draw_dsa
from raydd.errors import UserError
from raydd.keyed import numpy_rng, torch_rng
from raydd.models.normalization import IMAGENET
from raydd.train import experts
from raydd.train.experts import ExpertRecipe, expert_net, measure_snapshots, train_expert

RECIPE = ExpertRecipe("convnet2", 8, 3, epochs=2, lr=0.05, batch=16, width=8, seed=5)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """41 images of three classes that differ in brightness."""
    labels = torch.arange(41) % 3
    noise = torch.randint(0, 90, (41, 3, 8, 8), generator=torch_rng("images"))
    return (noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels


def train(data, recipe=RECIPE, index=0) -> torch.Tensor:
    return train_expert(*data, recipe, index, normalization=IMAGENET)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.5, "weight_decay": 0.01}], ids=["plain", "momentum"])
def test_it_is_the_training_of_a_module(data, changes):
    """Against modules' own parameters, gradients and backward, batch by batch as the specification says."""
    recipe, (images, labels) = dataclasses.replace(RECIPE, **changes), data
    snapshots = train(data, recipe, 3)
    net = expert_net(recipe, 3).net
    vector_to_parameters(parameters_to_vector(net.parameters()).half().float(), net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.05, recipe.momentum, weight_decay=recipe.weight_decay)
    wanted = [parameters_to_vector(net.parameters()).detach().clone()]
    for epoch in range(2):
        order = np.argsort(numpy_rng(5, "expert", 3, "order", epoch).random(41))
        for step in range(3):
            rows = order[16 * step : 16 * (step + 1)]
            assert len(rows) == (16, 16, 9)[step]
            dsa = draw_dsa(numpy_rng(5, "expert", 3, epoch, step), len(rows), "one")
            assert len(dsa.groups) == 1 and len(dsa.uniform) == len(rows)
            optimizer.zero_grad()
            F.cross_entropy(net(apply_dsa(IMAGENET.apply(images[rows]), dsa)), labels[rows]).backward()
            optimizer.step()
        wanted.append(parameters_to_vector(net.parameters()).detach().clone())
    torch.testing.assert_close(snapshots, torch.stack(wanted), rtol=0, atol=1e-6)
    assert (snapshots[1:] - snapshots[0]).abs().max() > 1e-3


def test_snapshots_are_copies(data):
    snapshots = train(data)
    assert snapshots.shape == (3, len(expert_net(RECIPE))) and snapshots.dtype == torch.float32
    steps = (snapshots[1:] - snapshots[:-1]).norm(dim=1)
    assert (steps > 1e-3).all()


def test_it_starts_from_rounded_parameters(data):
    start = train(data, index=1)[0]
    own = expert_net(RECIPE, 1).parameters()
    assert torch.equal(start, own.half().float()) and not torch.equal(start, own)


def test_an_expert_is_a_function_of_recipe_and_index(data):
    first = train(data)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(train(data), first)
    assert torch.equal(torch.get_rng_state(), state)
    shorter = train(data, dataclasses.replace(RECIPE, epochs=1))
    assert torch.equal(shorter, first[:2])
    for other in (train(data, index=1), train(data, dataclasses.replace(RECIPE, seed=6))):
        assert not torch.equal(other[0], first[0])
        # Not only the start: order and augmentation are their own as well.
        assert not torch.allclose(other[1] - other[0], first[1] - first[0], atol=1e-4)


def test_accuracy_of_every_snapshot(data, monkeypatch):
    monkeypatch.setattr(experts, "TEST_BATCH", 7)
    recipe = dataclasses.replace(RECIPE, epochs=6)
    snapshots = train(data, recipe)
    measured = measure_snapshots(snapshots, *data, recipe, normalization=IMAGENET)
    net = expert_net(recipe).net
    for flat, accuracy in zip(snapshots, measured, strict=True):
        vector_to_parameters(flat, net.parameters())
        assert accuracy == pytest.approx((net(IMAGENET.apply(data[0])).argmax(1) == data[1]).float().mean().item())
    assert measured[-1] > max(0.6, measured[0])


def test_dropout_is_off():
    """A trajectory is followed by one function of the parameters."""
    net = expert_net(ExpertRecipe("squeezenet1_1", 32, 3))
    flat, images = net.parameters(), torch.rand(2, 3, 32, 32)
    assert torch.equal(net(flat, images), net(flat, images))
    net.net.train()
    assert not torch.equal(net(flat, images), net(flat, images))


def test_a_divergence_is_said(data):
    with pytest.raises(UserError, match="expert 0 diverged in epoch 1 at --lr 1e\\+30: choose a smaller --lr"):
        train(data, dataclasses.replace(RECIPE, lr=1e30))


def test_networks_with_other_state_are_refused():
    with pytest.raises(UserError, match=r"no trajectories of convnet2: .*batch norm.*--arch convnet3"):
        expert_net(dataclasses.replace(RECIPE, norm="batch"))
    with pytest.raises(UserError, match="needs at least 8 px"):
        expert_net(dataclasses.replace(RECIPE, arch="convnet3", image_size=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 0}, "--epochs 0"), ({"batch": 0}, "--batch 0"), ({"lr": 0.0}, "--lr"), ({"momentum": 1.0}, "--momen")],
)
def test_numbers_out_of_range(changes, message):
    RECIPE.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **changes).check()
