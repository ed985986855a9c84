"""The loop of the denoiser: its target and weights by hand, its draws, its resumption, and shared batches."""

import dataclasses

import numpy as np
import pytest
import torch

from raydd.errors import UserError
from raydd.models.prior.networks import UNetShape, build_denoiser
from raydd.train.denoiser import DenoiserTraining, TrainingLatents, batch_rows, loss_weights
from raydd.train.prior_recipe import preset

SHAPE = UNetShape((8, 8))
RECIPE = preset("tiny", shape=SHAPE, image_size=8, steps=6, batch=4, lr=1e-2, precision="fp32")


def latents(count=10) -> TrainingLatents:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return TrainingLatents(images, None, torch.arange(count) % 3)


def training(recipe=RECIPE, data=None, **kinds) -> DenoiserTraining:
    net = build_denoiser(recipe.shape, channels=1, size=8, num_classes=3, seed=recipe.seed)
    return DenoiserTraining(net, recipe, data or latents(), 3, "cpu", **kinds)


def test_a_step_is_resumed_bitwise():
    whole, parts = training(), training()
    whole.run(6)
    parts.run(2)
    assert not torch.equal(parts.state()["model.conv_out.weight"], whole.state()["model.conv_out.weight"])
    fresh = training()
    fresh.restore(parts.state(), 2)
    facts = fresh.run(6)
    assert all(torch.equal(tensor, fresh.state()[name]) for name, tensor in whole.state().items())
    assert (facts["step"], facts["steps"]) == (6, 6) and facts["images_per_second"] > 0


def test_the_loss_of_a_zero_network_is_the_weighted_target(monkeypatch):
    """A fresh network predicts 0, so the first loss is the mean of w |v|^2."""
    recipe = dataclasses.replace(RECIPE, label_dropout=0.0)
    plan = training(recipe)
    clean, noise, levels, labels = plan._draw(0)
    alpha, sigma = (x[levels].double().view(-1, 1, 1, 1) for x in (plan.alphas, plan.sigmas))
    v = alpha * noise - sigma * clean
    snr = (alpha / sigma) ** 2
    expected = (torch.minimum(snr, torch.tensor(5.0)) / (snr + 1) * v**2).mean()
    assert plan.run(1)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert sorted(levels.tolist()) == levels.tolist() and [level // 250 for level in levels.tolist()] == [0, 1, 2, 3]
    assert labels.max() < 3


def test_weights():
    alpha = torch.tensor([0.99, 0.8, 0.1])
    sigma = (1 - alpha**2).sqrt()
    clean = torch.tensor([1.3, 0.4, -2.0])  # an error of the clean image, and what it is of v and of epsilon
    capped = ((alpha / sigma) ** 2).clamp(max=5) * clean**2
    for kind, error in (("v_prediction", clean / sigma), ("epsilon", clean * alpha / sigma)):
        recipe = dataclasses.replace(RECIPE, prediction=kind)
        assert torch.allclose(loss_weights(alpha, sigma, recipe) * error**2, capped, rtol=1e-4)
    assert torch.equal(loss_weights(alpha, sigma, dataclasses.replace(RECIPE, snr_cap=None)), torch.ones(3))


def test_every_pass_shows_every_image_once():
    rows = torch.cat([batch_rows(10, 4, step, 0) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert not torch.equal(batch_rows(10, 4, 0, 1), rows[:4])


def test_labels_are_dropped_and_images_mirrored():
    recipe = dataclasses.replace(RECIPE, batch=400, label_dropout=0.25, flip=True)
    plan = training(recipe)
    clean, *_, labels = plan._draw(0)
    assert (labels == 3).float().mean().item() == pytest.approx(0.25, abs=0.07)
    plain = plan.data.mean[batch_rows(10, 400, 0, 0)].float() / 127.5 - 1
    mirrored = (clean == plain.flip(-1)).all((1, 2, 3))
    assert ((clean == plain).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_latents_are_drawn_and_mirrored():
    mean, std = torch.zeros(2, 1, 2, 2).half(), torch.full((2, 1, 2, 2), 2.0).half()
    data = TrainingLatents(mean, std, torch.tensor([0, 1]), (mean + 1, std * 2))
    noise = torch.ones(3, 1, 2, 2)
    got = data.batch(torch.tensor([0, 1, 0]), torch.tensor([False, True, False]), noise)
    assert got[:, 0, 0, 0].tolist() == [2.0, 5.0, 2.0]
    assert mean.abs().max() == 0


def test_the_average_follows():
    plan = training()
    plan.run(1)
    name = "conv_out.weight"  # all that moves at the first step of a network that starts at zero
    parameter = plan.parameters[name]
    assert (plan.average[name] - parameter).abs().max() > 0
    plan.run(6)
    net = plan.averaged()
    assert torch.equal(dict(net.named_parameters())[name], plan.average[name])
    assert not any(p.requires_grad for p in net.parameters()) and parameter.requires_grad


def test_bad_batches_and_divergence():
    with pytest.raises(UserError, match="--batch 4 does not divide by 3 workers"):
        training(world=3)
    plan = training()
    with torch.no_grad():
        plan.net.conv_in.weight.fill_(np.nan)
    with pytest.raises(UserError, match=r"diverged at step 0: use a smaller --lr than 0.01"):
        plan.run(1)


def test_two_ranks_share_a_batch(monkeypatch):
    """The mean of the gradients that two ranks would exchange is the gradient of the whole batch."""
    sent = []

    class Sent(Exception):
        pass

    def all_reduce(flat):
        sent.append(flat.clone())
        raise Sent

    monkeypatch.setattr("raydd.train.denoiser.dist.all_reduce", all_reduce)
    recipe = dataclasses.replace(RECIPE, clip=1e9)
    for rank in (0, 1):
        with pytest.raises(Sent):
            training(recipe, rank=rank, world=2).run(1)
    alone = training(recipe)
    alone.run(1)
    whole = torch.cat([p.grad.flatten() for p in alone.parameters.values()])
    assert whole.abs().max() > 1e-3 and not torch.allclose(sent[0], sent[1], atol=1e-4)
    assert torch.allclose((sent[0] + sent[1]) / 2, whole, atol=1e-6)


def test_shared_gradients_are_averaged(monkeypatch):
    monkeypatch.setattr("raydd.train.denoiser.dist.all_reduce", lambda flat: flat.mul_(2))
    alone, shared = training(), training(world=2)
    for plan in (alone, shared):
        for k, parameter in enumerate(plan.parameters.values()):
            parameter.grad = torch.full_like(parameter, k)
    shared._share_gradients()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(alone.parameters.values(), shared.parameters.values()))
