"""The inner loop: equal to torch.optim, the plateau rule, and our optimizer's invariance to the loss's scale."""

import dataclasses

import pytest
import torch

from raydd.distill.dsco.config import DscoConfig, sgd
from raydd.distill.dsco.objective import norm_gap
from raydd.distill.dsco.optimize import minimize
from raydd.keyed import torch_rng

NOISE = torch.randn(3, 1, 4, 4, generator=torch_rng("noise"), dtype=torch.float64)
GOAL = torch.randn(3, 1, 4, 4, generator=torch_rng("goal"), dtype=torch.float64)
WEIGHT = torch.rand(3, 1, 4, 4, generator=torch_rng("weight"), dtype=torch.float64) + 0.1


def bowl(noise: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weighted square around GOAL and its gradient."""
    return scale * (WEIGHT * (noise - GOAL) ** 2).sum()[None], scale * 2 * WEIGHT * (noise - GOAL)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.2)),
    ],
)
def test_updates_are_those_of_torch(name, make):
    expected = NOISE.clone().requires_grad_()
    optimizer = make([expected])
    for _ in range(30):
        optimizer.zero_grad()
        bowl(expected)[0].backward()
        optimizer.step()
    before = NOISE.clone()
    found, losses = minimize(bowl, NOISE, DscoConfig(optimizer=name, norm="penalty", iterations=30))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    assert len(losses) == 30 and torch.equal(NOISE, before)


def test_shell_stays_on_its_sphere_and_finds_the_minimum_there():
    found, losses = minimize(bowl, NOISE, DscoConfig(iterations=200, lr=0.1))
    assert norm_gap(found).abs().max() < 1e-12
    grad = bowl(found)[1]
    radial = (grad * found).flatten(1).sum(1) / found.flatten(1).square().sum(1)
    tangential = grad - radial.view(-1, 1, 1, 1) * found
    assert tangential.abs().max() < 0.02 * grad.abs().max() and losses[-1] < losses[0] / 2


def test_shell_does_not_see_the_scale_of_the_loss():
    config = DscoConfig(iterations=20)
    one, many = (minimize(lambda n, s=scale: bowl(n, s), NOISE, config)[0] for scale in (1.0, 1e4))
    torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["shell", "sgd", "adam"])
def test_a_class_does_not_see_the_others(name):
    """Two classes of very different gradients, together and alone."""
    config = DscoConfig(optimizer=name, iterations=12, norm="project")
    both = torch.cat([NOISE, NOISE.flip(0)])

    def pair(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = [bowl(noise[:3]), bowl(noise[3:], 50.0)]
        return torch.cat([loss for loss, _ in found]), torch.cat([grad for _, grad in found])

    found, losses = minimize(pair, both, config, classes=2)
    first, second = (minimize(lambda n, s=s: bowl(n, s), start, config) for s, start in ((1, NOISE), (50, both[3:])))
    torch.testing.assert_close(found, torch.cat([first[0], second[0]]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses, torch.cat([first[1], second[1]], 1))


def test_shell_keeps_still_without_a_gradient():
    found, _ = minimize(lambda n: (n.sum()[None], torch.zeros_like(n)), NOISE, DscoConfig(iterations=3))
    assert torch.isfinite(found).all()


def test_plateau_stops():
    config = dataclasses.replace(sgd(), stop="plateau", iterations=500)

    def high(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 + bowl(noise)[0], bowl(noise)[1]

    found, losses = minimize(high, NOISE, config)
    assert 20 <= len(losses) < 500 and len(losses) % 10 == 0
    same, _ = minimize(bowl, NOISE, dataclasses.replace(config, stop="none", iterations=len(losses)))
    assert torch.equal(found, same)


def test_no_iterations_leave_the_noise_alone():
    found, losses = minimize(bowl, NOISE, DscoConfig(iterations=0))
    assert torch.equal(found, NOISE) and len(losses) == 0
