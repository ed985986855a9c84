"""Controls: real images chosen at random, by k-means, or by herding in the teacher's feature space.

They share candidates, codec, labels and evaluation with the methods that they are held against. RDED, the fourth
control, is a setting of InfoUtil's pipeline (`raydd.distill.infoutil.config.rded`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from raydd.config import check_choices
from raydd.data.source import Source
from raydd.distill.assemble import open_images, stored_logits
from raydd.distill.encode import encode, resolve_codec
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.keyed import hash64
from raydd.models.teacher import Teacher
from raydd.store.distilled import DistilledImage

CONTROLS = ("random", "kmeans", "herding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig(OutputConfig):
    """Options of a control, and its labels and codec."""

    # Candidates per class; None looks at the whole class.
    mipc: int | None = None

    def check(self) -> None:
        """Raise `UserError` for an unknown switch or no candidates."""
        check_choices(self)
        if self.mipc is not None and self.mipc < 1:
            raise UserError(f"--mipc {self.mipc}: must be at least 1")


def choose_kmeans(features: np.ndarray, ipc: int, seed: int) -> list[int]:
    """Rows nearest to the `ipc` centers of k-means over features [n,D], each row at most once."""
    centers = KMeans(ipc, n_init=1, random_state=seed, max_iter=100).fit(features).cluster_centers_
    distance = (features**2).sum(1)[None] - 2 * centers @ features.T
    chosen: list[int] = []
    for row in distance:
        nearest = next(int(i) for i in np.argsort(row, kind="stable") if int(i) not in chosen)
        chosen.append(nearest)
    return chosen


def choose_herding(features: np.ndarray, ipc: int) -> list[int]:
    """Greedy rows of features [n,D] whose running mean stays closest to the class mean (Welling, 2009)."""
    mean, total, chosen = features.mean(0), np.zeros(features.shape[1]), []
    free = np.ones(len(features), bool)
    norms = (features**2).sum(1)
    for count in range(1, ipc + 1):
        # |mean - (total + f) / count|^2 up to terms that do not depend on f.
        cost = norms / count**2 - 2 / count * (features @ (mean - total / count))
        best = int(np.where(free, cost, np.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += features[best]
    return chosen


def choose_by_features(
    method: str, keys: Sequence[str], features: np.ndarray, class_name: str, ipc: int, seed: int
) -> list[str]:
    """`ipc` keys of a class by k-means or herding over features [n,D]."""
    features = np.asarray(features, np.float64)
    # One thread, wherever it runs: partial sums of several would be added in another order.
    with threadpool_limits(1):
        if method == "kmeans":
            rows = choose_kmeans(features, ipc, hash64("kmeans", seed, class_name) % 2**32)
        else:
            rows = choose_herding(features, ipc)
    return [keys[row] for row in rows]


def build_class(
    source: Source, keys: Sequence[str], config: ControlConfig, *, ipc: int, size: int, teacher: Teacher | None
) -> list[DistilledImage]:
    """The first `ipc` readable originals of `keys` as distilled images.

    `teacher` makes stored labels and is None for online and hard ones. Raises `UserError` if too few can be read.
    """
    codec = resolve_codec(config.codec, size)
    pixels = open_images(source, keys, size)
    readable = [key for key in keys if key in pixels][:ipc]
    if len(readable) < ipc:
        raise UserError(f"only {len(readable)} of {len(keys)} chosen images can be read: use a lower --ipc")
    return [
        DistilledImage(
            data=encode(pixels[key], codec),
            origin="real",
            source_keys=(key,),
            boxes=((0, 0, size, size),),
            soft_label=stored_logits(teacher, pixels[key][None], size),
        )
        for key in readable
    ]
