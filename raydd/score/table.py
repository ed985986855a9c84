"""Any subset of the scores of a decoded batch, as an Arrow table with plain types.

features        penultimate activations, float16 [D]
shapley         Shapley values of the patches [P] and pooled heat of the windows
gradnorm        exact gradient norm over all parameters
gradnorm_last   the same of the last layer, closed form
el2n, loss, margin
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from raydd.config import check_choices
from raydd.errors import UserError, choose
from raydd.models.teacher import Teacher
from raydd.score.batches import padded_batches, to_pixels
from raydd.score.designs import build_design
from raydd.score.gradnorm import GradNorm
from raydd.score.outputs import Outputs
from raydd.score.shapley import ShapleyScorer

SCORES = ("features", "shapley", "gradnorm", "gradnorm_last", "el2n", "loss", "margin")
_FORWARD = ("features", "gradnorm_last", "el2n", "loss", "margin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to compute per image; all but `scores` and `seed` concern the Shapley values, as in InfoUtil's crops."""

    # Names of scores.
    scores: tuple[str, ...] = ("features",)
    # Shapley estimator: 52 deterministic evaluations (ours), or `captum` as in the paper.
    estimator: Literal["border_windows", "windows", "border", "antithetic", "paired", "leverage", "captum", "exact"] = (
        "border_windows"
    )
    # Evaluations per image of the random estimators; None takes the estimator's own.
    evaluations: int | None = None
    # The teacher's output that the patches play for.
    game: Literal["logit", "probability", "margin"] = "logit"
    # What a masked patch shows; zero is after normalization.
    baseline: Literal["zero", "image_mean", "blur"] = "zero"
    # Patches per side.
    grid: int = 4
    # Patches per side of a window.
    pool: int = 2
    # Seed of the random estimators.
    seed: int = 0

    def check(self) -> None:
        """Raise `UserError` for an unknown name, or a budget that the estimator cannot use."""
        check_choices(self)
        if not self.scores:
            raise UserError(f"no scores asked for: give some of {', '.join(SCORES)}")
        for name in self.scores:
            choose("score", name, SCORES)
        if "shapley" in self.scores:
            build_design(self.estimator, grid=self.grid, pool=self.pool, evaluations=self.evaluations, seed=self.seed)


class Scorer:
    """`scorer(images, labels, keys)` computes every score asked for in one pass over each decoded batch."""

    def __init__(
        self,
        teacher: Teacher,
        config: ScoreConfig,
        *,
        batch: int = 64,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        config.check()
        self.teacher, self.config, self.batch, self.device = teacher, config, batch, device
        self.outputs = Outputs(teacher.model) if set(config.scores) & set(_FORWARD) else None
        self.gradnorm = GradNorm(teacher.model) if "gradnorm" in config.scores else None
        self.shapley = None
        if "shapley" in config.scores:
            options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "scores"}
            self.shapley = ShapleyScorer(teacher.model, precision=precision, **options)

    def __call__(self, images: np.ndarray, labels: Sequence[int], keys: Sequence[str]) -> pa.Table:
        """Images uint8 [n,S,S,3], labels and keys of one unit; rows in the order given."""
        pixels = to_pixels(images)
        parts = []
        for rows, real in padded_batches(len(keys), self.batch):
            x = self.teacher.normalize(pixels[rows].to(self.device))
            y = torch.tensor([labels[i] for i in rows], device=self.device)
            scores = self._batch(x, y, [keys[i] for i in rows])
            parts.append({name: value[:real].cpu() for name, value in scores.items()})
        columns = {"key": pa.array(keys), "label": pa.array(labels, pa.int32())}
        for name in parts[0]:
            value = torch.cat([part[name] for part in parts])
            columns[name] = list_column(value) if value.ndim == 2 else pa.array(value.float().numpy())
        return pa.table(columns)

    def _batch(self, x: torch.Tensor, y: torch.Tensor, keys: list[str]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        if self.outputs is not None:
            out = self.outputs(x, y)
            out["features"] = out["features"].half()
            found |= {name: out[name] for name in _FORWARD if name in self.config.scores}
        if self.gradnorm is not None:
            found["gradnorm"] = self.gradnorm(x, y)
        if self.shapley is not None:
            found |= self.shapley(x, y, keys)
        return found


def list_column(values: torch.Tensor | np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [n,k] as a fixed-size list column: plain Arrow, which any reader understands."""
    matrix = values.numpy() if isinstance(values, torch.Tensor) else values
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])
