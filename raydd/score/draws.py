"""Random Shapley designs: draws of coalitions, keyed by the seed, with the matrix that solves for the values.

Each builder takes (players, evaluations, seed), evaluations with both ends, and returns masks bool [K, P] and the map
float64 [P, K]; `designs` says what the estimators are. `paired` and `leverage` (arXiv 2410.01917) are the best of 100
draws by trace(AA') (A-optimal, ours) and do no better than Captum's below about 50 evaluations. The weights of
`leverage` are those of draws with replacement, so it stays inexact even when it takes nearly all coalitions.
"""

import numpy as np

from raydd.errors import UserError
from raydd.keyed import numpy_rng
from raydd.score.regression import is_determined, projector, regression_map, with_ends

DEFAULT_EVALUATIONS = {"antithetic": 62, "paired": 66, "leverage": 66, "captum": 25}
DRAWS = 100


def captum_masks(players: int, evaluations: int, rng: np.random.Generator) -> np.ndarray:
    """Captum's draws without the two ends: bool [evaluations - 2, players], sizes with p(k) ~ 1/(k(P-k))."""
    if evaluations < 3:
        raise UserError(f"evaluations {evaluations}: both ends and at least one draw are needed; try 25")
    sizes = np.arange(1, players)
    odds = 1.0 / (sizes * (players - sizes))
    drawn = rng.choice(sizes, size=evaluations - 2, p=odds / odds.sum())
    return _members(drawn, players, rng)


def _members(sizes: np.ndarray, players: int, rng: np.random.Generator) -> np.ndarray:
    ranks = rng.random((len(sizes), players)).argsort(axis=1).argsort(axis=1)
    return ranks < sizes[:, None]


def captum(players: int, evaluations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One draw of Captum's estimator."""
    masks = captum_masks(players, evaluations, numpy_rng(seed, "shapley", "captum", evaluations))
    return with_ends(masks), regression_map(masks)


def antithetic(players: int, evaluations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random orders and their reverses; `UserError` unless evaluations = 2 + 2 (P - 1) per pair of orders."""
    pairs, rest = divmod(evaluations - 2, 2 * (players - 1))
    if rest or pairs < 1:
        one = 2 * (players - 1)
        raise UserError(f"evaluations {evaluations}: antithetic takes 2 + {one} per pair; try {one + 2}, {2 * one + 2}")
    rng = numpy_rng(seed, "shapley", "antithetic", players)
    forward = np.stack([rng.permutation(players) for _ in range(pairs)])
    orders = np.concatenate([forward, forward[:, ::-1]])
    ranks = orders.argsort(axis=1)
    chains = ranks[:, None, :] < np.arange(1, players)[None, :, None]
    masks = with_ends(chains.reshape(-1, players))
    matrix = np.zeros((players, len(masks)))
    for index, order in enumerate(orders):
        inner = 1 + index * (players - 1) + np.arange(players - 1)
        steps = np.concatenate([[0], inner, [len(masks) - 1]])
        matrix[order, steps[1:]] += 1.0 / len(orders)
        matrix[order, steps[:-1]] -= 1.0 / len(orders)
    return masks, matrix


def paired(players: int, evaluations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Captum's draws, each with its complement; `UserError` for an odd or too small budget."""
    pairs = _num_pairs("paired", players, evaluations)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        half = captum_masks(players, pairs + 2, rng)
        return np.concatenate([half, ~half]), np.ones(2 * pairs)

    return _a_optimal(draw, seed, "paired", players, pairs)


def leverage(players: int, evaluations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs of uniform size; `UserError` for an odd budget, or one too small or beyond all coalitions."""
    pairs = _num_pairs("leverage", players, evaluations)
    if pairs > 2 ** (players - 1) - 1:
        raise UserError(f"evaluations {evaluations}: {players} players have 2^{players} coalitions; use 'exact'")

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        half = _distinct_pairs(players, pairs, rng)
        sizes = half.sum(axis=1)
        return np.concatenate([half, ~half]), np.tile(1.0 / (sizes * (players - sizes)), 2)

    return _a_optimal(draw, seed, "leverage", players, pairs)


def _distinct_pairs(players: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """First `pairs` distinct {A, N - A} of a stream of draws of uniform size; A is the member that holds player 0."""
    found: dict[bytes, np.ndarray] = {}
    while len(found) < pairs:
        for mask in _members(rng.integers(1, players, size=2 * pairs), players, rng):
            side = mask if mask[0] else ~mask
            found.setdefault(side.tobytes(), side)
    return np.stack(list(found.values())[:pairs])


def _num_pairs(name: str, players: int, evaluations: int) -> int:
    least = 2 * players
    if evaluations % 2 or evaluations < least:
        raise UserError(f"evaluations {evaluations}: {name} takes an even number from {least}; try {4 * players + 2}")
    return evaluations // 2 - 1


def _a_optimal(draw, seed: int, *key: object) -> tuple[np.ndarray, np.ndarray]:
    """The draw of smallest trace(AA') among those that determine all values: free, and no near-singular design."""
    best, least = None, np.inf
    for index in range(DRAWS):
        masks, weights = draw(numpy_rng(seed, "shapley", *key, index))
        spread = np.square(projector(masks, weights)).sum() if is_determined(masks) else np.inf
        if spread < least:
            best, least = (masks, weights), spread
    if best is None:
        raise UserError(f"{key[0]}: no draw of {2 * key[2]} coalitions fixes {key[1]} values; raise evaluations")
    return with_ends(best[0]), regression_map(*best)


RANDOM = {"captum": captum, "antithetic": antithetic, "paired": paired, "leverage": leverage}
