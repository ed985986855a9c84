"""Which coalitions of image patches a Shapley estimator evaluates, and the matrix that turns their values into a map.

Every estimator of InfoUtil's Shapley stage (arXiv 2601.21296; KernelSHAP arXiv 1705.07874) is one `Design`, built once
in float64: phi = V @ map'. Players are the cells of a grid x grid partition, numbered row by row; windows are the
pool x pool blocks of an average pooling of stride 1.

    exact           all 2^P coalitions, P <= 16
    captum (paper)  {}, N and iid draws of size k with p(k) ~ 1/(k(P-k)); Captum's KernelShap, library default 25
    paired          each such draw with its complement
    leverage        pairs without replacement, size uniform, weight 1/(k(P-k))
    antithetic      a random order of the players and its reverse; mean marginal contribution
    border          all coalitions of size 1 and P-1
    border_windows  (ours, default) border, plus the windows and their complements at weight 0.5; 52 at 4 x 4, pool 2
    windows         windows and complements only: pooled map without a patch map; 18 at 4 x 4, pool 2

All but `captum` use a coalition together with its complement, which makes them exact for interactions of order <= 2:
the odd part of a product x_i x_j is linear in x - 1/2. The random ones are in `draws`, the fixed ones here.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import factorial

import numpy as np

from raydd.errors import UserError, choose
from raydd.score.draws import DEFAULT_EVALUATIONS, RANDOM
from raydd.score.regression import regression_map, with_ends

ESTIMATORS = ("border_windows", "windows", "border", "antithetic", "paired", "leverage", "captum", "exact")
MAX_EXACT_PLAYERS = 16
WINDOW_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class Design:
    """Coalitions and the matrix over their values.

    masks: bool [K, P], True = patch visible, {} and N included where used. map: float64 [P, K] giving Shapley values
    (kind "patch"), or [windows, K] giving pooled values up to one constant per image (kind "window").
    """

    name: str
    masks: np.ndarray
    map: np.ndarray
    kind: str
    grid: int
    pool: int

    @property
    def evaluations(self) -> int:
        """Forward passes of the teacher per image."""
        return len(self.masks)

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits that name the design: the matrix follows from these parts, its last bits from the BLAS."""
        head = f"{self.name} {self.kind} {self.grid} {self.pool} {self.masks.shape}".encode()
        return hashlib.sha256(head + np.packbits(self.masks).tobytes()).hexdigest()[:12]

    def position(self, full: bool) -> int | None:
        """Row of the full (or empty) coalition, None when the design does not evaluate it."""
        rows = np.flatnonzero((self.masks == full).all(axis=1))
        return int(rows[0]) if len(rows) else None


def window_masks(grid: int, pool: int) -> np.ndarray:
    """The (grid - pool + 1)^2 windows of pool x pool patches, row by row: bool [windows, P]."""
    steps = range(grid - pool + 1)
    masks = np.zeros((len(steps), len(steps), grid, grid), bool)
    for row in steps:
        for column in steps:
            masks[row, column, row : row + pool, column : column + pool] = True
    return masks.reshape(len(steps) ** 2, grid**2)


def pooling(grid: int, pool: int) -> np.ndarray:
    """Average pooling of stride 1 over the patch map, as a matrix: float64 [windows, P], rows sum to 1."""
    return window_masks(grid, pool) / pool**2


def heat_matrix(design: Design) -> np.ndarray:
    """Matrix from values to the heat of every window: float64 [windows, K] (window designs: up to one constant)."""
    return pooling(design.grid, design.pool) @ design.map if design.kind == "patch" else design.map


def build_design(
    estimator: str, *, grid: int = 4, pool: int = 2, evaluations: int | None = None, seed: int = 0
) -> Design:
    """Build the design of one estimator (grid, pool: paper 4, 2; estimator: ours `border_windows`, paper `captum`).

    `evaluations` is the budget of the random estimators, ends included; the others have a fixed count and take None or
    exactly that count. Raises `UserError` for an unknown estimator or a budget that it cannot use.
    """
    choose("estimator", estimator, ESTIMATORS)
    if grid < 2 or not 1 <= pool <= grid:
        raise UserError(f"grid {grid}, pool {pool}: grid must be at least 2 and pool 1..grid; try grid 4, pool 2")
    players = grid**2
    if estimator in DEFAULT_EVALUATIONS:
        count = DEFAULT_EVALUATIONS[estimator] if evaluations is None else evaluations
        masks, matrix = RANDOM[estimator](players, count, seed)
    else:
        masks, matrix = _FIXED[estimator](grid, pool)
        if evaluations not in (None, len(masks)):
            raise UserError(f"evaluations {evaluations}: estimator {estimator} takes {len(masks)}; leave it out")
    return _checked(Design(estimator, masks, matrix, "window" if estimator == "windows" else "patch", grid, pool))


def _exact(grid: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    players = grid**2
    if players > MAX_EXACT_PLAYERS:
        raise UserError(f"estimator exact: grid {grid} has 2^{players} coalitions; use grid 4 or 'border_windows'")
    masks = (np.arange(2**players)[:, None] >> np.arange(players)) % 2 == 1
    sizes = masks.sum(axis=1)
    order = np.array([factorial(k) * factorial(players - 1 - k) / factorial(players) for k in range(players)])
    joined = order[np.maximum(sizes - 1, 0)]
    absent = order[np.minimum(sizes, players - 1)]
    return masks, np.where(masks, joined[:, None], -absent[:, None]).T


def _border_masks(players: int) -> np.ndarray:
    alone = np.eye(players, dtype=bool)
    return np.concatenate([alone, ~alone])


def _border(grid: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    masks = _border_masks(grid**2)
    return with_ends(masks), regression_map(masks)


def _border_windows(grid: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    players = grid**2
    windows = window_masks(grid, pool)
    sizes = windows.sum(axis=1)
    windows = windows[(sizes > 1) & (sizes < players - 1)]
    masks = np.concatenate([_border_masks(players), windows, ~windows])
    weights = np.where(np.arange(len(masks)) < 2 * players, 1.0, WINDOW_WEIGHT)
    return with_ends(masks), regression_map(masks, weights)


def _windows(grid: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    windows = window_masks(grid, pool)
    half = np.eye(len(windows)) / (2 * pool**2)
    return np.concatenate([windows, ~windows]), np.concatenate([half, -half], axis=1)


def _checked(design: Design) -> Design:
    """Efficiency and the value of a constant game hold by construction; a broken builder must not get out."""
    assert np.allclose(design.map.sum(axis=1), 0, atol=1e-9), "a constant game must have no value"
    if design.kind == "patch":
        ends = np.zeros(design.evaluations)
        ends[design.position(full=False)], ends[design.position(full=True)] = -1, 1
        assert np.allclose(design.map.sum(axis=0), ends, atol=1e-9), "values must add up to v(N) - v({})"
    return design


_FIXED = {"exact": _exact, "border": _border, "border_windows": _border_windows, "windows": _windows}
