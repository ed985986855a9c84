"""Which of a prior's labels stands for which class of a source.

A prior's names come from raydd.json or from the `id2label` of its model_index.json, where one label may have several,
separated by commas ("tench, Tinca tinca", or with a WordNet id). A source's class matches a label that has its name, or
its WordNet id, among them.
"""

import re
from collections.abc import Mapping, Sequence

from raydd.errors import UserError

WORDNET = re.compile(r"n\d{8}")


def map_labels(
    classes: Sequence[str],
    names: Sequence[str] | None,
    count: int,
    class_map: Mapping[str, int | str] | None,
    prior: str,
) -> tuple[int, ...]:
    """The prior's label of every class of the source, in order.

    `names` are the prior's own, or None where it records none: then as many classes as labels are taken in order, and
    anything else needs `class_map`, from class names to labels (or to names of the prior's). Raises `UserError` that
    names the first class without a label.
    """
    found = _by_name(names or ())
    if class_map is not None:
        return tuple(_mapped(name, class_map, found, count, prior) for name in classes)
    if names is None:
        if len(classes) == count:
            return tuple(range(count))
        raise UserError(
            f"the prior {prior} has {count} labels without names but the source has {len(classes)} classes: "
            "give a class map from class names to labels"
        )
    for name in classes:
        if not any(key in found for key in _keys(name)):
            raise UserError(
                f"the prior {prior} ({count} labels) knows no class {name!r}: give a class map, or another prior"
            )
    return tuple(next(found[key] for key in _keys(name) if key in found) for name in classes)


def _mapped(name: str, class_map: Mapping[str, int | str], found: Mapping[str, int], count: int, prior: str) -> int:
    if name not in class_map:
        raise UserError(
            f"the class map has no entry for {name!r}: give the label of the prior {prior} that stands for it"
        )
    label = class_map[name]
    if isinstance(label, str) and not label.isdecimal():
        if label not in found:
            raise UserError(f"the class map sends {name!r} to {label!r}, which the prior {prior} does not know")
        return found[label]
    if not 0 <= int(label) < count:
        raise UserError(f"the class map sends {name!r} to label {label}: the prior {prior} has labels 0 to {count - 1}")
    return int(label)


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Labels by every name; a name that two labels share belongs to the first, but whole entries go before parts."""
    found = {name: label for label, name in reversed(list(enumerate(names)))}
    for label, name in enumerate(names):
        for key in _keys(name):
            found.setdefault(key, label)
    return found


def _keys(name: str) -> list[str]:
    parts = [part.strip() for part in name.split(",")]
    return list(dict.fromkeys([name, *parts, *WORDNET.findall(name)]))
