"""Designs: constant games, efficiency, exactness up to order 2 and not beyond, closed forms.

Oracles: games given by their Moebius coefficients m_T, whose Shapley values are sum over T containing i of m_T / |T|.
"""

import itertools
from math import factorial

import numpy as np
import pytest

from raydd.errors import UserError
from raydd.score.designs import ESTIMATORS, build_design, heat_matrix, pooling, window_masks

PAIRED = ("border_windows", "border", "antithetic", "paired", "leverage")
PATCH = (*PAIRED, "captum", "exact")


def game(masks: np.ndarray, order: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values [K] of a random game with all interactions up to `order`, and its Shapley values [P]."""
    players = masks.shape[1]
    values, shapley = np.full(len(masks), rng.normal()), np.zeros(players)
    for size in range(1, order + 1):
        for members in map(list, itertools.combinations(range(players), size)):
            coefficient = rng.normal() / size
            values += coefficient * masks[:, members].all(axis=1)
            shapley[members] += coefficient / size
    return values, shapley


@pytest.mark.parametrize("estimator", PATCH)
def test_constant_game_is_worth_nothing_and_values_add_up(estimator):
    design = build_design(estimator)
    ends = np.zeros(design.evaluations)
    ends[design.position(full=False)], ends[design.position(full=True)] = -1, 1
    np.testing.assert_allclose(design.map.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(design.map.sum(axis=0), ends, atol=1e-12)


@pytest.mark.parametrize("grid, pool", [(2, 1), (2, 2), (3, 2), (4, 1), (4, 2), (4, 3), (4, 4), (5, 2)])
@pytest.mark.parametrize("estimator", ["border", "border_windows", "antithetic"])
def test_paired_designs_are_exact_on_every_grid(estimator, grid, pool):
    evaluations = 2 + 2 * (grid**2 - 1) if estimator == "antithetic" else None
    design = build_design(estimator, grid=grid, pool=pool, evaluations=evaluations)
    values, shapley = game(design.masks, 2, np.random.default_rng(0))
    np.testing.assert_allclose(design.map @ values, shapley, atol=1e-12)


@pytest.mark.parametrize("estimator", PAIRED)
def test_paired_designs_are_exact_to_order_two_only(estimator):
    design, rng = build_design(estimator), np.random.default_rng(1)
    for order in (1, 2):
        values, shapley = game(design.masks, order, rng)
        np.testing.assert_allclose(design.map @ values, shapley, atol=1e-12)
    values, shapley = game(design.masks, 3, rng)
    assert np.abs(design.map @ values - shapley).max() > 1e-2


def test_captum_draws_are_exact_on_additive_games_only():
    design, rng = build_design("captum", evaluations=60), np.random.default_rng(2)
    values, shapley = game(design.masks, 1, rng)
    np.testing.assert_allclose(design.map @ values, shapley, atol=1e-12)
    values, shapley = game(design.masks, 2, rng)
    assert np.abs(design.map @ values - shapley).max() > 1e-2


def test_exact_is_exact_for_every_order():
    design = build_design("exact", grid=2, pool=1)
    values, shapley = game(design.masks, 4, np.random.default_rng(3))
    np.testing.assert_allclose(design.map @ values, shapley, atol=1e-12)


def test_exact_is_the_mean_marginal_contribution_over_all_orders():
    design = build_design("exact", grid=2, pool=1)
    values = np.random.default_rng(4).normal(size=16)
    table = {mask.tobytes(): value for mask, value in zip(design.masks, values)}
    mean = np.zeros(4)
    for order in itertools.permutations(range(4)):
        seen = np.zeros(4, bool)
        for player in order:
            before = table[seen.tobytes()]
            seen[player] = True
            mean[player] += (table[seen.tobytes()] - before) / factorial(4)
    np.testing.assert_allclose(design.map @ values, mean, atol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "border", "border_windows"])
def test_symmetry_dummy_and_linearity(estimator):
    design = build_design(estimator)
    masks = design.masks
    glove = (masks[:, 0] & masks[:, 1]) * 3.0 + 0.7 * masks[:, 5]
    shapley = design.map @ glove
    np.testing.assert_allclose(shapley[[0, 1, 5]], [1.5, 1.5, 0.7], atol=1e-12)
    np.testing.assert_allclose(np.delete(shapley, [0, 1, 5]), 0, atol=1e-12)
    other = np.random.default_rng(5).normal(size=len(masks))
    both = design.map @ (2 * glove - other)
    np.testing.assert_allclose(both, 2 * shapley - design.map @ other, atol=1e-9)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_windows_equal_the_pooled_map_up_to_a_constant(pool):
    design = build_design("windows", pool=pool)
    values, shapley = game(design.masks, 2, np.random.default_rng(6))
    gap = heat_matrix(design) @ values - pooling(4, pool) @ shapley
    assert gap.std() < 1e-12
    assert design.evaluations == 2 * (5 - pool) ** 2


def test_border_regression_is_its_closed_form():
    design = build_design("border")
    values = np.random.default_rng(7).normal(size=34)
    empty, alone, without, full = values[0], values[1:17], values[17:33], values[33]
    half = (alone - empty + full - without) / 2
    np.testing.assert_allclose(design.map @ values, half + (full - empty - half.sum()) / 16, atol=1e-12)


def test_windows_and_pooling_are_row_major():
    masks = window_masks(4, 2)
    assert masks.shape == (9, 16)
    assert np.flatnonzero(masks[5]).tolist() == [6, 7, 10, 11]
    np.testing.assert_allclose(pooling(4, 2)[5] @ np.arange(16.0), (6 + 7 + 10 + 11) / 4)


def test_evaluations_hash_and_seed():
    counts = {name: build_design(name).evaluations for name in ESTIMATORS if name != "exact"}
    assert counts == dict(border_windows=52, windows=18, border=34, antithetic=62, paired=66, leverage=66, captum=25)
    for name in ("paired", "leverage", "antithetic", "captum"):
        assert build_design(name, seed=1).hash == build_design(name, seed=1).hash != build_design(name, seed=2).hash
    assert build_design("border", seed=1).hash == build_design("border", seed=2).hash


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(estimator="bordr"), "border"),
        (dict(estimator="exact", grid=5), "border_windows"),
        (dict(estimator="border", evaluations=50), "34"),
        (dict(estimator="antithetic", evaluations=50), "62"),
        (dict(estimator="paired", evaluations=33), "even"),
        (dict(estimator="leverage", evaluations=20), "even"),
        (dict(estimator="captum", evaluations=2), "25"),
        (dict(estimator="border", pool=5), "pool"),
    ],
)
def test_wrong_options_are_one_line_with_a_remedy(options, word):
    with pytest.raises(UserError, match=word) as caught:
        build_design(**options)
    assert "\n" not in str(caught.value)
