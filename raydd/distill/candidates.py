"""Which source images a method looks at, and whether a class can give what is asked of it.

RDED takes random files with an unseeded shuffle; we take the keys with the smallest hash of (seed, class, key) (ours):
no decoding, no dependence on the order of the listing or on other classes.
"""

import math
from collections.abc import Mapping, Sequence

from raydd.errors import UserError
from raydd.keyed import smallest


def candidates(keys: Sequence[str], class_name: str, count: int | None, seed: int) -> list[str]:
    """At most `count` keys of a class (all if None), in hash order."""
    count = len(keys) if count is None else count
    return [keys[i] for i in smallest(keys, count, "candidate", seed, class_name)]


def candidate_count(mipc: int, per_image: int, ipc: int) -> int:
    """max(mipc, ceil(1.5 * k * IPC)): the paper's 300, raised so that selection has something to choose from (ours)."""
    return max(mipc, math.ceil(1.5 * per_image * ipc))


def check_counts(counts: Mapping[str, int], ipc: int, per_image: int) -> None:
    """Raise `UserError` when a class has fewer than `per_image * ipc` images, naming the smallest class."""
    if ipc < 1:
        raise UserError(f"--ipc {ipc}: must be at least 1 image per class; try --ipc 10")
    name, smallest_count = min(counts.items(), key=lambda item: (item[1], item[0]))
    if smallest_count < per_image * ipc:
        raise UserError(
            f"--ipc {ipc} needs {per_image * ipc} source images per class, but class {name!r} has {smallest_count}: "
            f"use --ipc {smallest_count // per_image} or less"
            + (", or --factor 1 (one source image per distilled image)" if per_image > 1 else "")
        )
