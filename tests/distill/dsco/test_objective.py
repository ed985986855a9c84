"""The loss in closed form: against autograd through the sort, central differences, Wasserstein, invariants."""

import dataclasses

import pytest
import torch
from scipy.stats import wasserstein_distance

from raydd.distill.dsco.config import sgd
from raydd.distill.dsco.features import FeatureNet
from raydd.distill.dsco.objective import Matching, norm_gap, norm_gradient, shell, sort_residual
from raydd.distill.dsco.targets import Targets, make_targets, stacked
from raydd.keyed import torch_rng

SHAPE = (2, 8, 8)
SGD = sgd()
NETS = [FeatureNet(SHAPE, "objective", n, dtype=torch.float64) for n in range(2)]


def draw(*shape: int, key: object = "draw") -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng(key), dtype=torch.float64)


def matching_of(count: int, nets=NETS[:1], config=SGD, std=0.3, key: object = "") -> Matching:
    targets = [make_targets(net(draw(40, *SHAPE, key=("reals", key))), count) for net in nets]
    mean = draw(count, *SHAPE, key=("mean", key))
    return Matching(nets, targets, mean, torch.as_tensor(std, dtype=torch.float64), config)


def reference(matching: Matching, noise: torch.Tensor) -> torch.Tensor:
    """J through the whole net, the sort and plain formulas."""
    total = 0.0
    for net, target in zip(matching.nets, matching.targets):
        z = (net.maps(matching.mean + matching.std * noise).mean((2, 3)) - target.mean[0]) / target.std[0]
        gap = z.sort(0).values - target.quantiles[0]
        pull = matching.config.kappa / net.features * len(noise) / len(matching.nets)
        total = total + pull * (gap.abs() + gap**2).sum()
    off = noise.flatten(1).norm(dim=1) - noise[0].numel() ** 0.5
    return total + matching.config.norm_weight * (off.abs() + off**2).sum()


@pytest.mark.parametrize(("count", "nets"), [(1, 1), (4, 1), (3, 2)])
def test_gradient_equals_autograd_through_the_sort(count, nets):
    matching, noise = matching_of(count, NETS[:nets]), draw(count, *SHAPE, key="noise").requires_grad_()
    (expected,) = torch.autograd.grad(reference(matching, noise), noise)
    torch.testing.assert_close(matching(noise.detach())[1], expected, rtol=1e-9, atol=1e-12)


def test_gradient_with_a_learned_deviation():
    std = 0.2 + 0.1 * draw(3, *SHAPE, key="std").abs()
    matching, noise = matching_of(3, std=std), draw(3, *SHAPE, key="noise").requires_grad_()
    (expected,) = torch.autograd.grad(reference(matching, noise), noise)
    torch.testing.assert_close(matching(noise.detach())[1], expected, rtol=1e-9, atol=1e-12)


def test_gradient_equals_central_differences():
    matching, noise, h = matching_of(3), draw(3, *SHAPE, key="noise"), 1e-6
    _, grad = matching(noise)
    for n in range(3):
        way = draw(3, *SHAPE, key=("way", n))
        found = (reference(matching, noise + h * way) - reference(matching, noise - h * way)) / (2 * h)
        assert float(found) == pytest.approx(float((grad * way).sum()), rel=1e-6)


def test_loss_is_the_sort_loss_per_sample_and_feature():
    matching, noise = matching_of(5), draw(5, *SHAPE, key="noise")
    bare = dataclasses.replace(matching, config=dataclasses.replace(matching.config, norm_weight=0.0))
    expected = reference(bare, noise) / (matching.config.kappa * 5 * 5)
    torch.testing.assert_close(matching.loss(noise), expected[None])
    torch.testing.assert_close(matching(noise)[0], expected[None])


def test_classes_that_lie_together_have_their_own_losses_and_gradients():
    alone = [matching_of(3, NETS, key=("class", n)) for n in range(2)]
    targets = [stacked(of_net) for of_net in zip(*(matching.targets for matching in alone))]
    together = Matching(NETS, targets, torch.cat([m.mean for m in alone]), alone[0].std, SGD)
    noises = [draw(3, *SHAPE, key=("noise", n)) for n in range(2)]
    found = together(torch.cat(noises))
    expected = [matching(noise) for matching, noise in zip(alone, noises)]
    for together_part, parts in zip(found, zip(*expected)):
        torch.testing.assert_close(together_part, torch.cat(parts), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.loss(torch.cat(noises)), found[0])


def test_pull_grows_with_the_count_unless_fixed():
    noise = draw(20, *SHAPE, key="noise")
    base = dataclasses.replace(sgd(), norm_weight=0.0)
    linear = matching_of(20, config=base)(noise)[1]
    fixed = matching_of(20, config=dataclasses.replace(base, k_scaling="fixed"))(noise)[1]
    torch.testing.assert_close(linear, 2 * fixed)


def test_residuals_are_the_wasserstein_distance():
    z, q = draw(50, 4, key="z"), draw(50, 4, key="q").sort(0).values
    found = sort_residual(z, q).abs().mean(0)
    expected = [wasserstein_distance(z[:, f].numpy(), q[:, f].numpy()) for f in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_residuals_vanish_at_a_permutation_and_follow_one():
    q = draw(9, 4, key="q").sort(0).values
    order = torch.randperm(9, generator=torch_rng("order"))
    assert not sort_residual(q[order], q).any()
    z = draw(9, 4, key="z")
    assert torch.equal(sort_residual(z[order], q), sort_residual(z, q)[order])


def test_ties_go_by_sample():
    q = torch.tensor([[1.0], [2.0], [3.0]])
    assert sort_residual(torch.zeros(3, 1), q).tolist() == [[-1.0], [-2.0], [-3.0]]


def test_scale_and_shift_of_a_feature_do_not_matter():
    features, reals = draw(6, 3, key="features"), draw(40, 3, key="reals")
    found = []
    for scale, shift in ((1.0, 0.0), (37.0, -5.0)):
        target: Targets = make_targets(scale * reals + shift, 6)
        z = (scale * features + shift - target.mean) / target.std
        found.append(sort_residual(z, target.quantiles))
    torch.testing.assert_close(*found)


def test_norm_gradient_and_shell():
    noise = draw(4, *SHAPE, key="noise").requires_grad_()
    gap = norm_gap(noise)
    (expected,) = torch.autograd.grad((gap.abs() + gap**2).sum(), noise)
    torch.testing.assert_close(norm_gradient(noise.detach()), expected)
    assert norm_gap(shell(noise.detach())).abs().max() < 1e-12
