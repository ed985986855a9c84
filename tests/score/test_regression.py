"""The constrained least squares equal a brute-force KKT solve, and the smallest-norm solution when rank-deficient."""

import numpy as np
import pytest

from raydd.score.regression import is_determined, projector, regression_map, with_ends


def solve(masks: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Minimize the weighted error subject to the sum, by the KKT system in the shifted unknown phi - D/d."""
    players = masks.shape[1]
    total = values[-1] - values[0]
    target = values[1:-1] - values[0] - total / players * masks.sum(axis=1)
    root = np.sqrt(weights)[:, None]
    basis = np.linalg.svd(np.ones((1, players)))[2][1:].T
    inner = np.linalg.lstsq(root * (masks @ basis), root[:, 0] * target, rcond=1e-10)[0]
    return total / players + basis @ inner


@pytest.mark.parametrize("count", [4, 12, 40])
def test_map_is_the_constrained_least_squares_solution(count):
    rng = np.random.default_rng(count)
    masks = rng.random((count, 9)) < 0.5
    weights, values = rng.random(count) + 0.1, rng.normal(size=count + 2)
    matrix = regression_map(masks, weights)
    np.testing.assert_allclose(matrix @ values, solve(masks, weights, values), atol=1e-10)


def test_leading_dimensions_are_independent_designs():
    rng = np.random.default_rng(1)
    masks = rng.random((5, 30, 9)) < 0.5
    stacked = regression_map(masks)
    for one, matrix in zip(masks, stacked):
        np.testing.assert_array_equal(regression_map(one), matrix)


def test_projector_recovers_any_centered_vector_when_determined():
    rng = np.random.default_rng(2)
    masks = rng.random((40, 9)) < 0.5
    assert is_determined(masks)
    phi = rng.normal(size=9)
    phi -= phi.mean()
    np.testing.assert_allclose(projector(masks, rng.random(40) + 0.5) @ (masks @ phi), phi, atol=1e-12)


def test_too_few_coalitions_do_not_determine_the_values():
    assert not is_determined(np.eye(9, dtype=bool)[:7])
    assert is_determined(np.eye(9, dtype=bool))


def test_ends_surround_the_masks():
    ends = with_ends(np.eye(3, dtype=bool))
    assert ends.shape == (5, 3) and not ends[0].any() and ends[-1].all()
