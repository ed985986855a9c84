"""A whole source, or some of its keys, decoded into one uint8 tensor: what small sets, students and tests work on.

Rows are sorted by key, whatever the layout, the unit size and the number of threads. Broken images are dropped and
listed. Pillow decodes without the interpreter lock, so threads are enough.
"""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from raydd.data.decode import decode_table
from raydd.data.source import Source, SourceUnit
from raydd.errors import UserError

LIMIT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class ImageSet:
    """Decoded images: `images` uint8 [N, 3, S, S], `labels` int64 [N], `keys` sorted; `dropped` are (key, reason)."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: tuple[str, ...]
    classes: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.keys)


def load_images(
    source: Source,
    size: int,
    *,
    keys: Collection[str] | None = None,
    resize: int | None = None,
    threads: int | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> ImageSet:
    """Decode `source` (or only `keys`) at `size`; see `decode_image` for `resize`.

    Raises `UserError` if the result would exceed `limit_bytes` or if every image is broken.
    """
    units = source.units(keys=keys)
    count = sum(unit.n for unit in units)
    if count * 3 * size * size > limit_bytes:
        raise UserError(
            f"{count} images of {size}x{size} need {count * 3 * size * size / 2**30:.1f} GiB of memory, more than the "
            f"limit of {limit_bytes / 2**30:.1f} GiB: choose a smaller image size or fewer classes"
        )
    ordered = sorted(key for unit in units for key in unit.rows["key"].to_pylist())
    place = {key: i for i, key in enumerate(ordered)}
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    labels = torch.full((count,), -1, dtype=torch.int64)

    def fill(unit: SourceUnit) -> list[tuple[str, str]]:
        table = unit.read()
        pixels, kept, dropped = decode_table(table, size, resize=resize)
        at = torch.tensor([place[key] for key in table["key"].take(kept).to_pylist()], dtype=torch.int64)
        images[at] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        labels[at] = torch.from_numpy(table["label"].to_numpy()[kept].astype(np.int64))
        return dropped

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 16)) as pool:
        dropped = sorted(problem for problems in pool.map(fill, units) for problem in problems)
    if count and len(dropped) == count:
        raise UserError(f"{source.uri}: none of {count} images can be decoded (first: {': '.join(dropped[0])})")
    if dropped:
        good = torch.nonzero(labels >= 0).flatten()
        images, labels = images[good], labels[good]
        ordered = [ordered[i] for i in good.tolist()]
    return ImageSet(images, labels, tuple(ordered), source.classes, tuple(dropped))
