"""Clarity: how sure a student is of the right class (DsCo's Doping, dsco.md section 5, step 4).

    clarity(x) = p(y) - max over k != y of p(k),  p = softmax of the student's logits

in [-1, 1]; negative where the student is wrong. y is the teacher's best class (as released) or the label. The released
code calls it margin; we do not, because `raydd.score.outputs.margin` is the difference of a teacher's logits (ours).

`ClarityScorer` gives both targets in one pass, so that one table serves either. Images are whole center squares at the
working size, without augmentation (as released).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydd.models.teacher import Teacher
from raydd.score.batches import padded_batches, to_pixels

TARGETS = ("teacher", "label")


def clarity(logits: Tensor, target: Tensor) -> Tensor:
    """Clarity float32 [B] of a student's `logits` [B, K] for classes `target` int64 [B], or teacher's logits [B, K].

    NaN where either side's logits are not finite. Raises `ValueError` for fewer than two classes or other shapes.
    """
    logits = logits.float()
    if logits.ndim != 2 or logits.shape[1] < 2 or target.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(f"logits {list(logits.shape)} and targets {list(target.shape)}")
    fine = logits.isfinite().all(dim=1)
    if target.ndim == 2:
        fine &= target.isfinite().all(dim=1)
        target = target.argmax(dim=1)
    probabilities = logits.softmax(dim=1)
    own = probabilities.gather(1, target[:, None])[:, 0]
    others = probabilities.scatter(1, target[:, None], -1.0).amax(dim=1)
    return torch.where(fine, own - others, torch.nan)


class ClarityScorer:
    """`scorer(images, labels, keys)`: a table of key, label, clarity_label and, with a teacher, clarity_teacher."""

    def __init__(self, student: Teacher, teacher: Teacher | None, *, batch: int = 64) -> None:
        self.student, self.teacher, self.batch = student, teacher, batch

    def __call__(self, images: np.ndarray, labels: Sequence[int], keys: Sequence[str]) -> pa.Table:
        """Images uint8 [n,S,S,3], labels and keys of one unit; rows in the order given."""
        pixels, y = to_pixels(images), torch.tensor(list(labels))
        parts: dict[str, list[Tensor]] = {f"clarity_{name}": [] for name in TARGETS if name == "label" or self.teacher}
        for rows, real in padded_batches(len(keys), self.batch):
            logits = self.student.logits(pixels[rows]).cpu()
            targets = {"label": y[rows]}
            if self.teacher is not None:
                targets["teacher"] = self.teacher.logits(pixels[rows]).cpu()
            for name, target in targets.items():
                parts[f"clarity_{name}"].append(clarity(logits, target)[:real])
        columns = {"key": pa.array(keys), "label": pa.array(labels, pa.int32())}
        return pa.table(columns | {name: pa.array(torch.cat(part).numpy()) for name, part in parts.items()})
