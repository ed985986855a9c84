"""No student, teacher choice or tuning may see the validation source: checks by path and by key.

Keys are relative paths or row ids, so equal keys in two sources prove nothing by themselves (`0/1.png` may exist in
both `train` and `val`). What is compared is the pair (source, key).
"""

from collections.abc import Iterable

from raydd.errors import UserError
from raydd.keyed import smallest
from raydd.store.filesystem import absolute


def check_sources(source: str, val: str) -> None:
    """Raise `UserError` when the validation source is the training source, or one lies within the other.

    Both are the sources that are read: `DIR/train` and `DIR/val` where a person named their parent `DIR`.
    """
    train, test = absolute(source), absolute(val)
    if train == test or train.startswith(test + "/") or test.startswith(train + "/"):
        raise UserError(
            f"validation source {val} overlaps the training source {source}: "
            "give held-out images, for example --val DIR/val"
        )


def check_keys(source: str, source_keys: Iterable[str], val: str, val_keys: Iterable[str]) -> None:
    """Raise `UserError` when an image behind the distilled set is also a validation image.

    `source_keys` are the keys of the real images that went into the set, `val_keys` those of the validation source.
    """
    if absolute(source) != absolute(val):
        return
    shared = sorted(set(source_keys) & set(val_keys))
    if shared:
        raise UserError(
            f"{len(shared)} images of the distilled set are also validation images (first: {shared[0]}): "
            "give a validation source that the distillation has not seen"
        )


def tune_split(keys: list[str], share: float = 0.1) -> list[int]:
    """Positions of the `tune` part of a training source: the tenth with the smallest hashes, in that order."""
    return smallest(keys, max(1, round(share * len(keys))), "tune")
