"""One pass over a decoded batch: Shapley heat, candidate crops, and the score of every distinct crop (steps 2 to 5).

Runs inside one actor on one decoded batch, so that an image is decoded once. Batches have a constant shape (the last
one is padded), and each draw is keyed by the image's own key: the result for an image does not depend on its batch,
its unit, or the number of workers.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from raydd.distill.infoutil.config import CropConfig
from raydd.distill.infoutil.crops import crop_boxes
from raydd.distill.infoutil.mosaic import cut
from raydd.errors import UserError
from raydd.keyed import hash64
from raydd.models.teacher import Teacher
from raydd.score.batches import padded_batches, to_pixels
from raydd.score.gradnorm import GradNorm
from raydd.score.outputs import Outputs
from raydd.score.shapley import ShapleyScorer
from raydd.score.table import list_column


def show_tile(tiles: torch.Tensor, size: int, how: str) -> torch.Tensor:
    """Normalized tiles [B,3,s,s] as the teacher sees them: zero-`padded` around the center, `resized`, or `native`."""
    side = tiles.shape[-1]
    if side == size or how == "native":
        return tiles
    if how == "resized":
        return F.interpolate(tiles, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    before = (size - side) // 2
    after = size - side - before
    return F.pad(tiles, (before, after, before, after))


def check_native(teacher: Teacher, side: int) -> None:
    """Raise `UserError` if the teacher cannot look at a bare tile of `side` pixels."""
    try:
        teacher.logits(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"teacher {teacher.info.arch} cannot look at bare tiles of {side} px: "
            "use --score-input padded, or a network with global pooling"
        ) from error


class CropScorer:
    """Scores a unit of decoded images: `scorer(images, labels, keys)` gives the unit's score table.

    Columns: key, label; `shapley`, `heat`, `v_full`, `v_empty` where crops come from Shapley values; `crop_ids` [R]
    (the image's crops, the last one clean), `crop_scores` and `crop_correct` [n] by id, NaN and 0 where not scored.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: CropConfig,
        *,
        classes: Sequence[str],
        size: int,
        factor: int,
        seed: int,
        batch: int = 64,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        self.teacher, self.config, self.classes = teacher, config, tuple(classes)
        self.size, self.factor, self.seed, self.batch, self.device = size, factor, seed, batch, device
        self.shapley = None
        if config.crop_from == "shapley":
            self.shapley = ShapleyScorer(
                teacher.model,
                estimator=config.estimator,
                evaluations=config.evaluations,
                grid=config.grid,
                pool=config.window,
                game=config.game,
                baseline=config.baseline,
                precision=precision,
                seed=seed,
            )
        self.outputs = Outputs(teacher.model)
        self.gradnorm = GradNorm(teacher.model) if config.score == "gradnorm" else None

    def __call__(self, images: np.ndarray, labels: Sequence[int], keys: Sequence[str]) -> pa.Table:
        """Images uint8 [n,S,S,3], labels and keys of one unit; rows in the order given."""
        pixels = to_pixels(images)
        columns: dict[str, pa.Array] = {"key": pa.array(keys), "label": pa.array(labels, pa.int32())}
        heat = None
        if self.shapley is not None:
            maps = self._maps(pixels, labels, keys)
            heat = maps["heat"].numpy()
            columns |= {name: list_column(maps[name]) for name in ("shapley", "heat") if name in maps}
            columns |= {name: pa.array(maps[name].numpy()) for name in ("v_full", "v_empty")}
        return pa.table(columns | self._crops(pixels, labels, keys, heat))

    def _maps(self, pixels: torch.Tensor, labels: Sequence[int], keys: Sequence[str]) -> dict[str, torch.Tensor]:
        parts = []
        for rows, real in padded_batches(len(keys), self.batch):
            x = self.teacher.normalize(pixels[rows].to(self.device))
            y = torch.tensor([labels[i] for i in rows], device=self.device)
            out = self.shapley(x, y, [keys[i] for i in rows])
            parts.append({name: value[:real].cpu() for name, value in out.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _crops(
        self, pixels: torch.Tensor, labels: Sequence[int], keys: Sequence[str], heat: np.ndarray | None
    ) -> dict[str, pa.Array]:
        ids, boxes, todo = [], [], []
        for i, key in enumerate(keys):
            row = None if heat is None else heat[i]
            picked, all_boxes = crop_boxes(
                self.config, self.size, self.factor, self.classes[labels[i]], key, self.seed, row
            )
            ids.append(picked)
            boxes.append(all_boxes)
            wanted = range(len(all_boxes)) if self.config.score_all_windows else sorted(set(picked.tolist()))
            todo += [(i, j) for j in wanted]
        scores = np.full((len(keys), len(boxes[0])), np.nan, np.float32)
        correct = np.zeros(scores.shape, np.uint8)
        if self.config.score == "none":
            for i, j in todo:
                scores[i, j] = hash64("no score", self.seed, self.classes[labels[i]], keys[i], j) / 2**64
        else:
            self._score(pixels, labels, boxes, todo, scores, correct)
        return {
            "crop_ids": list_column(np.stack(ids).astype(np.uint8)),
            "crop_scores": list_column(scores),
            "crop_correct": list_column(correct),
        }

    def _score(self, pixels, labels, boxes, todo, scores, correct) -> None:
        """Fill `scores` and `correct` at the (image, crop) pairs of `todo`."""
        side = self.size // self.factor
        for rows, real in padded_batches(len(todo), self.batch):
            pairs = [todo[r] for r in rows]
            tiles = torch.stack([cut(pixels[i], boxes[i][j], side) for i, j in pairs])
            x = show_tile(self.teacher.normalize(tiles.to(self.device)), self.size, self.config.score_input)
            y = torch.tensor([labels[i] for i, _ in pairs], device=self.device)
            out = self.outputs(x, y)
            hit = (out["margin"] > 0).cpu().numpy()
            value = self._value(x, y, out).float().cpu().numpy()
            for position, (i, j) in enumerate(pairs[:real]):
                scores[i, j], correct[i, j] = value[position], hit[position]

    def _value(self, x: torch.Tensor, y: torch.Tensor, out: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.gradnorm is not None:
            return self.gradnorm(x, y)
        return out[{"ce": "loss"}.get(self.config.score, self.config.score)]
