"""The ImageNet subsets of the literature by name: ten classes of ImageNet-1K each (ld3m.md, section 7).

A source whose URI ends in `#NAME`, such as `/data/imagenet#imagenette`, is that subset of the source before the mark.
The indices are those of ImageNet-1K, whose order is that of the sorted WordNet ids; the position in a list is the
subset's label.

Decisions (ours). Which class has an index is read from the names of the classes, in whatever order they stand: WordNet
ids are sorted (and those known here must be where they belong), numbers are taken by value, and other names count as
listed, unless they stand in alphabetical order, which is not ImageNet's. All 1,000 classes are needed, because an index
means nothing among fewer; only the two subsets that are handed out as trees of their own (`WNIDS`) are also found by
their ids, alone or among any other classes.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from raydd.data.listing import Listing
from raydd.errors import UserError, choose

# GLaD's and LD3M's names; those from `sport` on are defined in the released code but cannot be chosen there.
SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenet-a": (255, 376, 984, 364, 500, 986, 333, 576, 148, 135),
    "imagenet-b": (129, 916, 90, 275, 995, 874, 102, 259, 685, 139),
    "imagenet-c": (565, 94, 554, 535, 92, 392, 291, 136, 324, 11),
    "imagenet-d": (9, 258, 13, 262, 19, 339, 321, 24, 93, 322),
    "imagenet-e": (816, 96, 100, 145, 739, 713, 783, 76, 688, 326),
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "food": (933, 934, 932, 963, 930, 928, 924, 959, 931, 927),
    "geo": (980, 970, 975, 974, 973, 977, 976, 978, 972, 979),
    "mammals": (386, 387, 354, 340, 338, 104, 103, 279, 334, 366),
    "marine": (148, 2, 397, 327, 33, 150, 107, 108, 119, 392),
    "sport": (429, 430, 522, 574, 722, 768, 805, 852, 890, 746),
    "blub": (392, 393, 33, 397, 6, 107, 327, 390, 108, 122),
    "wind": (776, 513, 566, 558, 683, 684, 432, 875, 699, 593),
    "herp": (29, 31, 56, 47, 39, 27, 25, 37, 50, 42),
    "wheels": (555, 569, 561, 751, 866, 880, 612, 820, 466, 671),
    "bug": (301, 309, 323, 319, 315, 75, 306, 313, 311, 71),
    "misc": (971, 719, 920, 506, 614, 486, 507, 873, 562, 514),
}
ALIASES = {
    "nette": "imagenette",
    "woof": "imagewoof",
    "fruit": "imagefruit",
    "yellow": "imageyellow",
    "cats": "imagemeow",
    "meow": "imagemeow",
    "birds": "imagesquawk",
    "squawk": "imagesquawk",
}
# WordNet ids in the order of the indices above.
WNIDS = {
    "imagenette": "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257",
    "imagewoof": "n02096294 n02093754 n02111889 n02088364 n02086240 n02089973 n02087394 n02115641 n02099601 n02105641",
}
KNOWN = {index: wnid for name, ids in WNIDS.items() for index, wnid in zip(SUBSETS[name], ids.split())}
ALL = 1000
# `n01440764`, also with a name behind it as in `n01440764 tench`.
WNID = re.compile(r"n\d{8}(?!\d)")


def subset_name(name: str) -> str:
    """The subset that `name` or an alias stands for, in lower case; `UserError` with the nearest one otherwise."""
    known = choose("ImageNet subset", name.lower(), [*SUBSETS, *ALIASES])
    return ALIASES.get(known, known)


def subset_labels(uri: str, name: str, classes: Sequence[str]) -> list[int]:
    """Labels that the ten classes of subset `name` have in a source with these `classes`, in the subset's order.

    Raises `UserError`, naming `uri`, for a source whose classes do not tell which is which.
    """
    label_of = {match.group(): label for label, found in enumerate(classes) if (match := WNID.match(found))}
    own = WNIDS.get(name, "").split()
    if own and label_of.keys() >= set(own):
        return [label_of[wnid] for wnid in own]
    if len(classes) != ALL:
        raise UserError(
            f"#{name} needs all 1,000 classes of ImageNet; {uri} has {len(classes)}: "
            f"leave #{name} out, or give the whole of ImageNet"
        )
    order = _order(label_of, classes)
    if order is None:
        raise UserError(
            f"#{name}: the classes of {uri} ({classes[0]!r}, {classes[1]!r} ...) are not in ImageNet-1K's order: "
            f"name them by its WordNet ids or by 0 to 999, or leave #{name} out"
        )
    return [order[index] for index in SUBSETS[name]]


def narrow(listing: Listing, labels: Sequence[int]) -> Listing:
    """The images of the classes `labels` alone, renumbered by their position in it."""
    position = np.full(len(listing.classes), -1, np.int32)
    position[list(labels)] = np.arange(len(labels), dtype=np.int32)
    renumbered = position[listing.rows["label"].to_numpy()]
    column = listing.rows.schema.get_field_index("label")
    rows = listing.rows.set_column(column, listing.rows.schema.field(column), pa.array(renumbered))
    classes = tuple(listing.classes[label] for label in labels)
    return Listing(rows.filter(pa.array(renumbered >= 0)), classes, listing.mislabeled)


def _order(label_of: Mapping[str, int], classes: Sequence[str]) -> list[int] | None:
    """Label of every ImageNet index among 1,000 classes, `label_of` those with WordNet ids; None if it cannot be."""
    if len(label_of) == ALL:
        order = [label_of[wnid] for wnid in sorted(label_of)]
        return order if all(label_of.get(wnid) == order[index] for index, wnid in KNOWN.items()) else None
    if all(name.isdecimal() for name in classes):
        # As folders they are sorted as text: 0, 1, 10, 100.
        numbers = [int(name) for name in classes]
        return [int(label) for label in np.argsort(numbers)] if sorted(numbers) == list(range(ALL)) else None
    alphabetical = list(classes) == sorted(classes) and not re.search(r"\d", "".join(classes))
    return None if alphabetical else list(range(ALL))
