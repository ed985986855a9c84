"""Label forms: what a student is taught about a view (evaluation.md section 3.1).

| form | a view's target |
|---|---|
| `hard` | the class; under CutMix both classes by area |
| `online` | the teacher run on the mixed view itself |
| `views` | stored teacher logits of that view (`raydd.evaluate.views`) |
| `patch` | mean of the tiles' stored soft labels, weighted by the exact share of the view that each tile supplies |
| `single` | one stored soft label per image; under CutMix both by area |

Every form answers `targets(batch, temperature)` with probabilities; `kind` tells hard from soft, `seed` the seed that
stored labels belong to, `teacher_forwards` the teacher's forwards per image seen.
Limit: `patch` follows tile shuffle, crop, flip and CutMix, not AutoAugment or DSA.
"""

import numpy as np
import torch
from torch import Tensor

from raydd.augment.geometry import View
from raydd.augment.mix import Box
from raydd.errors import UserError, choose
from raydd.models.normalization import Normalization
from raydd.train.batches import Batch
from raydd.train.layout import memory_format
from raydd.train.sets import TrainSet

FORMS = ("hard", "online", "views", "patch", "single")


class HardLabels:
    """True classes as one-hot targets, mixed by area under CutMix; the temperature has no effect."""

    kind, seed, teacher_forwards = "hard", None, 0

    def __init__(self, train: TrainSet, num_classes: int):
        self.table = torch.nn.functional.one_hot(train.labels, num_classes).float()

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K]."""
        return mixed_by_area(self.table, batch)


class SingleLabels:
    """One logit vector per image, whatever the view: `soft_labels` [N, 1, K] of the set."""

    kind, seed, teacher_forwards = "soft", None, 0

    def __init__(self, train: TrainSet):
        self.logits = _stored(train, 1)[:, 0].float()

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K]."""
        return mixed_by_area((self.logits / temperature).softmax(dim=1), batch)


class PatchLabels:
    """One logit vector per tile of a mosaic: `soft_labels` [N, F * F, K], tiles in row-major order."""

    kind, seed, teacher_forwards = "soft", None, 0

    def __init__(self, train: TrainSet):
        self.factor = train.factor
        self.logits = _stored(train, train.factor**2).float()

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K]."""
        weights = tile_shares(batch.view, self.factor)
        mean = self._mean(batch.rows, weights, temperature)
        if batch.box is not None:
            hidden = tile_shares(batch.view, self.factor, batch.box)
            shown = tile_shares(batch.partner_view, self.factor, batch.box)
            mean = self._mean(batch.rows, weights - hidden, temperature)
            mean = mean + self._mean(batch.partners, shown, temperature)
        return mean.to(batch.images.device)

    def _mean(self, rows: np.ndarray, weights: np.ndarray, temperature: float) -> Tensor:
        probabilities = (self.logits[torch.from_numpy(rows)] / temperature).softmax(dim=2)
        flat = torch.from_numpy(weights.reshape(len(rows), 1, -1)).float()
        return torch.bmm(flat, probabilities)[:, 0]


class OnlineLabels:
    """The teacher's softmax on every mixed view. `normalization` is that of the views (the student's)."""

    kind, seed, teacher_forwards = "soft", None, 1

    def __init__(self, teacher, normalization: Normalization, device: str | torch.device = "cpu"):
        self.model = teacher.model.to(device).eval()
        self.layout = memory_format(self.model, torch.device(device))
        own = Normalization(tuple(teacher.info.mean), tuple(teacher.info.std))
        self.renormalize = None if own == normalization else lambda x: own.apply(normalization.invert(x))

    def logits(self, batch: Batch) -> Tensor:
        """The teacher's logits float32 [B, K] of the views."""
        images = batch.images if self.renormalize is None else self.renormalize(batch.images)
        with torch.no_grad():
            return self.model(images.contiguous(memory_format=self.layout)).float()

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K]."""
        return (self.logits(batch) / temperature).softmax(dim=1)


def make_labels(
    form: str,
    train: TrainSet,
    *,
    num_classes: int,
    teacher=None,
    normalization: Normalization | None = None,
    device: str | torch.device = "cpu",
):
    """The label form `form` for a set; `online` needs a teacher and the set's normalization.

    Stored views are opened by `raydd.evaluate.views.open_views`. Raises `UserError` when something is missing.
    """
    choose("label form", form, [f for f in FORMS if f != "views"])
    if form == "hard":
        return HardLabels(train, num_classes)
    if form == "patch":
        return PatchLabels(train)
    if form == "single":
        return SingleLabels(train)
    if teacher is None or normalization is None:
        raise UserError("online labels need a teacher: add --teacher DIR, or choose labels hard, patch or single")
    return OnlineLabels(teacher, normalization, device)


def mixed_by_area(table: Tensor, batch: Batch) -> Tensor:
    """Rows of `table` [N, K] for the views, mixed with the partners' by the area of the CutMix box; float [B, K]."""
    targets = table[torch.from_numpy(batch.rows)]
    if batch.box is not None:
        targets = targets * (1 - batch.box.area) + table[torch.from_numpy(batch.partners)] * batch.box.area
    return targets.to(batch.images.device)


def tile_shares(view: View, factor: int, box: Box | None = None) -> np.ndarray:
    """Share of each view's area that comes from each tile, float64 [B, F, F] by the tile's place in the stored image.

    With `box`, only the part inside the box is counted. Sums over tiles are 1, or the box's area. Raises `ValueError`
    when the views shuffled another number of tiles.
    """
    if view.rows.shape[1] not in (1, factor):
        raise ValueError(f"views of {view.rows.shape[1]} x {view.rows.shape[1]} tiles, labels of {factor} x {factor}")
    top, bottom, left, right = (box.top, box.bottom, box.left, box.right) if box else (0, view.size, 0, view.size)
    still = np.zeros_like(view.flip)
    vertical = _axis_shares(view.rows, view.box[:, 0], view.box[:, 2], still, (top, bottom), factor, view.size)
    horizontal = _axis_shares(view.columns, view.box[:, 1], view.box[:, 3], view.flip, (left, right), factor, view.size)
    return vertical[:, :, None] * horizontal[:, None, :]


def _axis_shares(
    order: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    flip: np.ndarray,
    span: tuple[int, int],
    factor: int,
    size: int,
) -> np.ndarray:
    """Share of the view's axis inside `span` that shows each source tile; float64 [B, F]."""
    low, high = np.where(flip, size - span[1], span[0]), np.where(flip, size - span[0], span[1])
    first, last = start + low * length / size, start + high * length / size
    edges = np.arange(factor + 1) * size / factor
    overlap = np.minimum(last[:, None], edges[1:]) - np.maximum(first[:, None], edges[:-1])
    by_place = np.clip(overlap, 0, None) / length[:, None]
    if order.shape[1] == 1:
        return by_place
    by_tile = np.empty_like(by_place)
    np.put_along_axis(by_tile, order, by_place, axis=1)
    return by_tile


def _stored(train: TrainSet, count: int) -> Tensor:
    found = "none" if train.soft_labels is None else f"{train.soft_labels.shape[1]} per image"
    if train.soft_labels is None or train.soft_labels.shape[1] != count:
        form = "single" if count == 1 else "patch"
        raise UserError(f"{form} labels need {count} soft labels per image, the set has {found}: choose online or hard")
    return train.soft_labels
