"""Random designs: the law of Captum's draws, error against evaluations, distinct pairs, and the A-optimal choice."""

import numpy as np

from raydd.score.designs import build_design
from raydd.score.draws import captum_masks
from raydd.score.regression import projector


def test_error_of_random_estimators_falls_like_one_over_root_evaluations():
    exact = build_design("exact", grid=3)
    table = np.random.default_rng(8).normal(size=(40, 512))
    truth = table @ exact.map.T

    def error(estimator: str, evaluations: int) -> float:
        gaps = []
        for seed in range(20):
            design = build_design(estimator, grid=3, evaluations=evaluations, seed=seed)
            rows = design.masks @ (1 << np.arange(9))
            gaps.append(np.square(table[:, rows] @ design.map.T - truth).mean())
        return float(np.sqrt(np.mean(gaps)))

    assert 1.3 < error("antithetic", 2 + 16 * 4) / error("antithetic", 2 + 16 * 16) < 3.0
    assert 1.3 < error("captum", 102) / error("captum", 402) < 3.0
    assert 1.3 < error("leverage", 102) / error("leverage", 402) < 3.0


def test_captum_sizes_follow_the_shapley_kernel():
    sizes = captum_masks(16, 40_002, np.random.default_rng(9)).sum(axis=1)
    odds = 1.0 / (np.arange(1, 16) * np.arange(15, 0, -1))
    expected = odds / odds.sum()
    measured = np.bincount(sizes, minlength=16)[1:] / 40_000
    assert np.abs(measured - expected).max() < 5 * np.sqrt(expected.max() / 40_000)
    assert 0.31 < measured[[0, -1]].sum() < 0.33


def test_captum_members_are_uniform():
    masks = captum_masks(9, 20_002, np.random.default_rng(10))
    share = masks.mean(axis=0)
    assert np.abs(share - 0.5).max() < 0.02


def test_leverage_has_no_coalition_twice():
    masks = build_design("leverage", evaluations=130).masks
    assert len(np.unique(masks, axis=0)) == 130


def test_a_optimal_choice_is_better_than_single_draws():
    def single(seed: int) -> float:
        half = captum_masks(16, 32, np.random.default_rng(seed))
        return float(np.square(projector(np.concatenate([half, ~half]))).sum())

    chosen = float(np.square(build_design("paired", evaluations=62).map[:, 1:-1]).sum())
    spreads = [single(seed) for seed in range(50)]
    assert chosen < np.quantile(spreads, 0.1)
