"""Maps and heat of real networks: planted object, exact values, Captum parity, and independence of batch and order."""

import numpy as np
import pytest
import torch
from torch import nn

from raydd.score.designs import ESTIMATORS, build_design, pooling
from raydd.score.draws import captum_masks
from raydd.score.game import masked_values
from raydd.score.regression import regression_map, with_ends
from raydd.score.shapley import ShapleyScorer, default_evaluations

KEYS = ["a", "b", "c", "d"]


class Patch(nn.Module):
    """Logit 1 = mean brightness of one 2-px patch minus the mean of the others; logit 0 = 0. An additive game."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.weight = torch.full((8, 8), -1 / 60)
        self.weight[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1 / 4

    def forward(self, x):
        value = (x.mean(1) * self.weight).sum((1, 2))
        return torch.stack([torch.zeros_like(value), value], 1)


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)]
        return nn.Sequential(*layers).eval()


def images(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "exact"])
def test_clean_window_contains_the_planted_object(estimator):
    x, y = torch.ones(4, 3, 8, 8), torch.ones(4, dtype=torch.int64)
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        scores = ShapleyScorer(Patch(row, column), estimator=estimator)(x, y, KEYS)
        windows = scores["heat"].argmax(1)
        tops, lefts = windows // 3, windows % 3
        assert ((tops <= row) & (row <= tops + 1) & (lefts <= column) & (column <= lefts + 1)).all()


def test_additive_game_gives_every_patch_its_own_sum():
    x, _ = images()
    y = torch.ones(4, dtype=torch.int64)
    net = Patch(1, 2)
    expected = (x.mean(1) * net.weight).unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum((2, 4)).flatten(1)
    for estimator in ("border_windows", "paired", "leverage", "antithetic"):
        scores = ShapleyScorer(net, estimator=estimator)(x, y, KEYS)
        torch.testing.assert_close(scores["shapley"], expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(scores["v_full"], net(x)[:, 1])
        torch.testing.assert_close(scores["v_empty"], torch.zeros(4))


def test_heat_is_the_pooled_map_and_values_add_up():
    x, y = images()
    for estimator in ("border_windows", "captum", "antithetic"):
        scores = ShapleyScorer(small_net(), estimator=estimator)(x, y, KEYS)
        torch.testing.assert_close(scores["heat"], scores["shapley"] @ torch.from_numpy(pooling(4, 2)).float().T)
        gain = scores["v_full"] - scores["v_empty"]
        torch.testing.assert_close(scores["shapley"].sum(1), gain, atol=1e-5, rtol=1e-5)


def test_windows_have_no_map_and_no_ends():
    scores = ShapleyScorer(small_net(), estimator="windows")(*images(), KEYS)
    assert "shapley" not in scores and scores["heat"].shape == (4, 9)
    assert scores["v_full"].isnan().all() and scores["v_empty"].isnan().all()


def test_default_is_near_the_exact_values_of_a_small_network():
    (x, y), net = images(), small_net()
    x, y, keys = x[:1], y[:1], KEYS[:1]
    exact = ShapleyScorer(net, estimator="exact", max_batch=4096)(x, y, keys)["shapley"]
    found = ShapleyScorer(net)(x, y, keys)["shapley"]
    few = ShapleyScorer(net, estimator="captum")(x, y, keys)["shapley"]
    assert (found - exact).norm() < 0.1 * exact.norm()
    assert (found - exact).norm() < 0.3 * (few - exact).norm()


@pytest.mark.parametrize("estimator", ["border_windows", "captum", "leverage"])
def test_an_image_depends_on_its_key_only(estimator):
    (x, y), scorer = images(), ShapleyScorer(small_net(), estimator=estimator, max_batch=16)
    together = scorer(x, y, KEYS)
    flipped = scorer(x.flip(0), y.flip(0), KEYS[::-1])
    alone = scorer(x[2:3], y[2:3], KEYS[2:3])
    for name, value in together.items():
        assert torch.equal(flipped[name].flip(0), value)
        assert torch.equal(alone[name], value[2:3])


def test_captum_draws_follow_seed_and_key():
    x, y = images()
    x, y = x[:1].repeat(4, 1, 1, 1), y[:1].repeat(4)
    first = ShapleyScorer(small_net(), estimator="captum", seed=0)(x, y, KEYS)["shapley"]
    other = ShapleyScorer(small_net(), estimator="captum", seed=1)(x, y, KEYS)["shapley"]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


def test_bf16_keeps_the_windows_of_clear_images():
    x, y = torch.ones(4, 3, 8, 8), torch.ones(4, dtype=torch.int64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    with torch.no_grad():
        net[1].weight.zero_()[1] = Patch(1, 2).weight.flatten().repeat(3)
    exact = ShapleyScorer(net)(x, y, KEYS)["heat"]
    rounded = ShapleyScorer(net, precision="bf16")(x, y, KEYS)["heat"]
    torch.testing.assert_close(rounded, exact, atol=0.02 * float(exact.abs().max()), rtol=0)


def test_default_evaluations_match_the_designs():
    for name in ESTIMATORS[:-1]:
        assert default_evaluations(name) == build_design(name).evaluations


def test_captum_solver_parity_on_the_same_coalitions(monkeypatch):
    attr = pytest.importorskip("captum.attr")
    (x, y), net = images(), small_net()
    masks = captum_masks(16, 40, np.random.default_rng(0))

    def fed(self, original, **options):
        for row in [np.ones(16), np.zeros(16), *masks]:
            yield torch.tensor(row, dtype=torch.long)[None]

    monkeypatch.setattr(attr.KernelShap, "kernel_shap_perturb_generator", fed)
    kernel = attr.KernelShap(net)
    # Bound in __init__, so replace the instance's own reference as well.
    kernel.perturb_func = fed.__get__(kernel)
    theirs = kernel.attribute(x[:1], target=0, feature_mask=_cells(), n_samples=40, return_input_shape=False)
    values = masked_values(net, x[:1], y[:1], torch.from_numpy(with_ends(masks)), grid=4)
    ours = regression_map(masks) @ values[0].double().numpy()
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-4 * np.abs(ours).max())


def test_captum_means_agree_within_three_standard_errors():
    attr = pytest.importorskip("captum.attr")
    (x, _), net = images(), small_net()
    kernel = attr.KernelShap(net)
    options = dict(target=0, feature_mask=_cells(), n_samples=25, perturbations_per_eval=25, return_input_shape=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.cat([kernel.attribute(x[:1], **options) for _ in range(100)])
    scorer = ShapleyScorer(net, estimator="captum", evaluations=25)
    keys = [str(i) for i in range(100)]
    ours = scorer(x[:1].expand(100, -1, -1, -1), torch.zeros(100, dtype=torch.int64), keys)["shapley"]
    error = ((theirs.var(0) + ours.var(0)) / 100).sqrt()
    gap = (theirs.mean(0) - ours.mean(0)).abs() / error
    # Sixteen means at once: three standard errors for the typical one, four for the worst.
    assert gap.square().mean().sqrt() < 2 and gap.max() < 4
    assert 0.6 < (theirs.var(0).sum() / ours.var(0).sum()).sqrt() < 1.6


def _cells() -> torch.Tensor:
    return torch.arange(16).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
