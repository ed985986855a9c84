"""Labels become positions in a recorded class list; unusable ones are reported; unusable sources are refused."""

import pytest
from small_set import write_files

from raydd.data.listing import number_labels, read_class_names
from raydd.errors import UserError

KEYS = list("abcdef")


def numbered(values, names=None):
    labels, classes, bad = number_labels(values, KEYS[: len(values)], names)
    return labels.tolist(), classes, bad


def test_integers_are_ordered_by_value_and_strings_by_name():
    assert numbered([217, 0, 1000]) == ([1, 0, 2], ("0", "217", "1000"), [])
    assert numbered(["dog", "bee", "dog"]) == ([1, 0, 1], ("bee", "dog"), [])


def test_names_decide_the_order():
    assert numbered(["dog", 1, "bee", 0], ("dog", "bee"))[0] == [0, 1, 1, 0]


def test_absent_negative_and_unknown_labels_are_reported():
    labels, _, bad = numbered([None, 0, -1, 2, "cow"], ("dog", "bee"))
    assert labels == [-1, 0, -1, -1, -1]
    assert dict(bad) == {
        "a": "no label",
        "c": "label -1 is outside the 2 class names",
        "d": "label 2 is outside the 2 class names",
        "e": "label 'cow' is outside the 2 class names",
    }
    assert numbered([-1, 4, 7])[:2] == ([-1, 0, 1], ("4", "7"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("classes.txt", "dog\nbee\n\n"), ("classes.json", '["dog", "bee"]'), ("classes.json", '{"bee": 1, "dog": 0}')],
)
def test_class_lists_in_their_forms(tmp_path, name, text):
    write_files(tmp_path, {name: text.encode()})
    assert read_class_names(str(tmp_path / "absent"), str(tmp_path)) == ("dog", "bee")


def test_no_class_list(tmp_path):
    assert read_class_names(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("classes.txt", "a\na\n"), ("classes.txt", "\n"), ("classes.json", "{"), ("classes.json", '{"a": 3}')],
)
def test_bad_class_lists_are_refused(tmp_path, name, text):
    write_files(tmp_path, {name: text.encode()})
    with pytest.raises(UserError, match=name):
        read_class_names(str(tmp_path))
