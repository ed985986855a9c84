"""Shapley maps of image patches for a teacher: a design (which coalitions) tied to a game (their values).

InfoUtil, stage 1 (arXiv 2601.21296): phi [P] says how much each patch of a grid adds to the teacher's output for the
label; average-pooled it gives the heat of every window that a crop may take. Shared designs need one matrix product per
batch. `captum` is the paper's estimator: fresh draws per image from a generator keyed by (seed, key), and one small
least-squares solve per image, batched, on the CPU in float64.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raydd.errors import choose
from raydd.keyed import numpy_rng
from raydd.score.designs import build_design, heat_matrix, pooling
from raydd.score.draws import DEFAULT_EVALUATIONS, captum_masks
from raydd.score.game import BASELINES, GAMES, PRECISIONS, fold_batchnorm, masked_values
from raydd.score.regression import regression_map, with_ends


class ShapleyScorer:
    """Shapley maps and window heat of batches of images.

    The games run on a copy of `model` with folded batch norms, made here: later changes of `model` are not seen.
    Defaults (ours): `border_windows`, 52 evaluations; (paper): estimator="captum", grid 4, pool 2. `max_batch` None
    means by device. Raises `UserError` for unknown options or a budget that the estimator cannot use.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: str = "border_windows",
        evaluations: int | None = None,
        grid: int = 4,
        pool: int = 2,
        game: str = "logit",
        baseline: str = "zero",
        precision: str = "fp32",
        max_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        choose("game", game, GAMES)
        choose("baseline", baseline, BASELINES)
        choose("precision", precision, PRECISIONS)
        # For `captum` this one draw is not used on images: it names the estimator's options in `design.hash`.
        self.design = build_design(estimator, grid=grid, pool=pool, evaluations=evaluations, seed=seed)
        self.model = fold_batchnorm(model)
        self.options = dict(grid=grid, game=game, baseline=baseline, precision=precision, max_batch=max_batch)
        self.seed = seed
        self._pooling = torch.from_numpy(pooling(grid, pool))
        self._map = torch.from_numpy(self.design.map)
        self._heat = torch.from_numpy(heat_matrix(self.design))
        self._empty, self._full = self.design.position(full=False), self.design.position(full=True)

    @property
    def evaluations(self) -> int:
        """Forward passes of the teacher per image."""
        return self.design.evaluations

    @torch.no_grad()
    def __call__(self, x: Tensor, labels: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """Score normalized images x [B, 3, S, S] with labels int64 [B]; keys name them (used by `captum` only).

        Returns float32 CPU tensors: shapley [B, P] (absent for `windows`), heat [B, windows] (for `windows` up to one
        constant per image), v_full [B] and v_empty [B] (NaN for `windows`).
        """
        if self.design.name == "captum":
            return self._captum(x, labels, keys)
        values = self._values(x, labels, torch.from_numpy(self.design.masks))
        scores = {"heat": (values @ self._heat.T).float(), **self._ends(values)}
        if self.design.kind == "patch":
            scores["shapley"] = (values @ self._map.T).float()
        return scores

    def _captum(self, x: Tensor, labels: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        assert len(keys) == len(x), f"{len(keys)} keys for {len(x)} images"
        count = self.design.evaluations
        players = self.design.grid**2
        drawn = np.stack([captum_masks(players, count, numpy_rng(self.seed, "captum", key)) for key in keys])
        values = self._values(x, labels, torch.from_numpy(with_ends(drawn)))
        maps = torch.from_numpy(regression_map(drawn))
        shapley = torch.einsum("bpk,bk->bp", maps, values)
        return {
            "shapley": shapley.float(),
            "heat": (shapley @ self._pooling.T).float(),
            "v_empty": values[:, 0].float(),
            "v_full": values[:, -1].float(),
        }

    def _values(self, x: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        return masked_values(self.model, x, labels, masks, **self.options).cpu().double()

    def _ends(self, values: Tensor) -> dict[str, Tensor]:
        missing = torch.full((len(values),), float("nan"))
        ends = {"v_empty": self._empty, "v_full": self._full}
        return {name: missing if row is None else values[:, row].float() for name, row in ends.items()}


def default_evaluations(estimator: str, grid: int = 4, pool: int = 2) -> int:
    """Forward passes per image that `estimator` takes by default: what a cost estimate multiplies with."""
    return DEFAULT_EVALUATIONS.get(estimator) or build_design(estimator, grid=grid, pool=pool).evaluations
