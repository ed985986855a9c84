"""What a user can mend: one line that names the thing and the remedy, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input or environment. The message is one line: what is wrong, with the value, and what to do instead."""


class Unfinished(UserError):
    """Some units did not finish; what was committed stays, and the same command goes on from there."""


def choose(what: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`; otherwise raise `UserError` with the nearest name and the list."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}: {hint}choose one of {', '.join(choices)}")
