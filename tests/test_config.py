"""Configurations compare and hash by content, and a difference names the option."""

import dataclasses
from typing import Literal

import pytest

from raydd.config import check_choices, content_hash, difference, to_plain
from raydd.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    alpha: float = 2.0
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = ("x",)
    teacher: Literal["early", "late"] | None = None


def test_plain_values():
    assert to_plain(Outer()) == {"inner": {"alpha": 2.0, "kind": "a"}, "names": ["x"], "teacher": None}
    assert to_plain({1: (2, 3)}) == {"1": [2, 3]}


def test_hash_is_of_the_content():
    assert (
        content_hash(Outer())
        == content_hash(to_plain(Outer()))
        == content_hash(dict(reversed(to_plain(Outer()).items())))
    )
    assert content_hash(Outer()) != content_hash(Outer(inner=Inner(alpha=2.5)))
    assert len(content_hash(Outer(), 20)) == 20
    assert content_hash({"a": 1}) == "015abd7f5cc5"


def test_difference_names_the_option_and_both_values():
    new = Outer(inner=Inner(alpha=1.0), names=("y",))
    assert difference(Outer(), new) == ["inner.alpha: 2.0 -> 1.0", 'names: ["x"] -> ["y"]']
    assert difference(Outer(), Outer()) == []
    assert difference({"a": 1}, {"b": 1}) == ["a: 1 -> null", "b: null -> 1"]


def test_long_values_are_cut():
    (line,) = difference({"classes": [f"class {i}" for i in range(1000)]}, {"classes": []})
    assert len(line) < 100 and line.endswith("... -> []")


def test_choices_of_literals_are_checked():
    check_choices(Inner())
    check_choices(Outer(teacher="late"))
    with pytest.raises(UserError, match="unknown kind 'c': choose one of a, b"):
        check_choices(Inner(kind="c"))
    with pytest.raises(UserError, match="unknown teacher 'earl': did you mean 'early'"):
        check_choices(Outer(teacher="earl"))
