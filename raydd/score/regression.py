"""Constrained least squares of KernelSHAP as one constant matrix, in float64.

Shapley values minimize sum_A w_A [v(A) - v({}) - sum_{i in A} phi_i]^2 subject to sum phi_i = v(N) - v({}). With
masks M (without the two ends), row weights w, P = I - 11'/d, Z = MP and A = P pinv(Z'WZ) Z'W, the solution is
phi = (D/d) 1 + A (v_M - v({}) - (D/d) M1), D = v(N) - v({}). This affine rule is linear in all values, so it is one
matrix. When coalitions do not determine phi, it is the solution of smallest norm: the one Captum's KernelShap returns.
"""

import numpy as np

# Z'WZ always has the null vector 1 (and more when rank-deficient); real eigenvalues of 0/1 designs are far above this.
NULL = 1e-10


def with_ends(masks: np.ndarray) -> np.ndarray:
    """Put the empty and the full coalition around `masks`: bool [..., K, P] -> bool [..., K + 2, P]."""
    shape = (*masks.shape[:-2], 1, masks.shape[-1])
    return np.concatenate([np.zeros(shape, bool), masks, np.ones(shape, bool)], axis=-2)


def projector(masks: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return A of the module docstring: bool [..., K, P] and weights [..., K] -> float64 [..., P, K]."""
    players = masks.shape[-1]
    center = np.eye(players) - 1.0 / players
    design = masks.astype(np.float64) @ center
    weighted = np.swapaxes(design * np.broadcast_to(weights, masks.shape[:-1])[..., None], -1, -2)
    return center @ np.linalg.pinv(weighted @ design, rcond=NULL, hermitian=True) @ weighted


def regression_map(masks: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Matrix that turns the values of `with_ends(masks)` into Shapley values.

    masks: bool [..., K, P] without the two ends; weights: [..., K], positive. Returns float64 [..., P, K + 2].
    Leading dimensions are independent designs (one per image for Captum's estimator).
    """
    players = masks.shape[-1]
    slopes = projector(masks, weights)
    share = masks.sum(axis=-1, keepdims=True) / players
    full = 1.0 / players - slopes @ share
    empty = -1.0 / players - slopes @ (1.0 - share)
    return np.concatenate([empty, slopes, full], axis=-1)


def is_determined(masks: np.ndarray) -> bool:
    """Whether the coalitions [K, P] (with both ends) fix all P values, that is whether the rank of Z is P - 1."""
    centered = masks.astype(np.float64) - masks.mean(axis=1, keepdims=True)
    return bool(np.linalg.matrix_rank(centered) == masks.shape[1] - 1)
