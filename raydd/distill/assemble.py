"""From chosen keys to committed images: what every method that selects real pixels does last."""

from collections.abc import Sequence

import torch

from raydd.data.decode import BadImage, decode_image
from raydd.data.source import Source
from raydd.distill.encode import resize
from raydd.models.teacher import Teacher


def open_images(source: Source, keys: Sequence[str], size: int) -> dict[str, torch.Tensor]:
    """The chosen source images by key as uint8 [3,size,size]; only these are read, broken ones are left out."""
    found = {}
    for record in source.read(sorted(set(keys))):
        try:
            found[record.key] = torch.tensor(decode_image(record.data, size)).permute(2, 0, 1).contiguous()
        except BadImage:
            continue
    return found


def stored_logits(teacher: Teacher | None, tiles: torch.Tensor, size: int) -> tuple[float, ...] | None:
    """The teacher's float16 logits for each tile uint8 [k,3,s,s] resized to `size`, one after the other.

    None without a teacher. float16 keeps ten bits: more than the labels' own precision, at half the bytes.
    """
    if teacher is None:
        return None
    return tuple(teacher.logits(resize(tiles, size)).half().flatten().tolist())
