"""Classes of a source find the prior's labels by any of its names, by WordNet id, or by an explicit map."""

import pytest

from raydd.errors import UserError
from raydd.models.prior.labels import map_labels

NAMES = ("tench, Tinca tinca", "n02102040 English springer, springer", "crane", "crane, machine")


def mapped(classes, names=NAMES, class_map=None, count=None):
    return map_labels(classes, names, count or len(names or ()), class_map, "P")


def test_by_name():
    assert mapped(["tench", "Tinca tinca", "n02102040", "springer", "crane", "machine"]) == (0, 0, 1, 1, 2, 3)
    assert mapped(["crane, machine", "crane"]) == (3, 2)
    assert mapped(["b", "a"], ("a", "b")) == (1, 0)


def test_by_map():
    assert mapped(["x", "y"], class_map={"x": 3, "y": "tench", "z": 99}) == (3, 0)
    assert mapped(["x"], class_map={"x": "2"}) == (2,)


def test_without_names_equal_counts_are_taken_in_order():
    assert mapped(["x", "y"], None, count=2) == (0, 1)


@pytest.mark.parametrize(
    ("classes", "names", "class_map", "message"),
    [
        (["tench", "dodo"], NAMES, None, "knows no class 'dodo'"),
        (["x"], None, None, "7 labels without names but the source has 1 classes"),
        (["x"], NAMES, {"y": 0}, "no entry for 'x'"),
        (["x"], NAMES, {"x": 9}, "sends 'x' to label 9: the prior P has labels 0 to 6"),
        (["x"], NAMES, {"x": "dodo"}, "'dodo', which the prior P does not know"),
    ],
)
def test_missing_classes_are_named(classes, names, class_map, message):
    with pytest.raises(UserError, match=message):
        mapped(classes, names, class_map, count=7)
