"""What the parser complains of, in one line that says everything once."""

import dataclasses

import pytest

from raydd.commands.parsing import parse
from raydd.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command."""

    # Where it goes.
    out: str
    # How many.
    seeds: int = 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "x", "7"], "Unrecognized options: 7; 'raydd go --help' explains every option"),
        (["--out", "x", "--no-flip"], "Unrecognized options: --no-flip; 'raydd go"),
        ([], r"Missing from raydd go: --out STR Where it goes. \(required\); 'raydd go"),
        (["--ot", "x"], r"Missing from raydd go: --out STR .*; Unrecognized options: --ot x; 'raydd go"),
        (["--out", "x", "--seds", "1"], "Unrecognized options: --seds, 1; Perhaps you meant: --seeds INT How many"),
        (["--out", "x", "--seeds", "two"], "Error parsing --seeds: .*'two'; --seeds INT How many"),
    ],
    ids=str,
)
def test_complaints(args, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        parse(Command, "go", args)
    assert "\n" not in str(caught.value)


def test_arguments_become_the_dataclass():
    assert parse(Command, "go", ["--out", "x"]) == Command(out="x")
    assert parse(Command, "go", ["--seeds", "2"], Command(out="y")) == Command(out="y", seeds=2)
