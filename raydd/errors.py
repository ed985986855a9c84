"""What a user can mend: one line that names the thing and the remedy, exit code 2, no traceback, and no secrets."""

import difflib
import re
from collections.abc import Iterable

HIDDEN = "***"
_LOGIN = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*)://(?P<user>[^\s/@:?#'\"]*)(?P<password>:[^\s/'\"]*)?@")
_QUERY = re.compile(r"(?i)([?&][\w-]*(?:sig|signature|token|key|secret|password|credential)[\w-]*=)[^&\s#'\"]+")


class UserError(ValueError):
    """Wrong input or environment. The message is one line: what is wrong, with the value, and what to do instead.

    Secrets in URIs are left out of it (`redact`).
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(str(message)))


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


def redact(text: str) -> str:
    """`text` with `***` for the passwords, and the tokens and keys in queries, of the URIs in it.

    A user without a password stays, as it names a container or a cluster, but for http, where it is a token; what
    stands there in github's URIs is a repository.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _LOGIN.sub(_hide_login, text))


def _hide_login(found: re.Match) -> str:
    scheme, user, password = found["scheme"].lower(), found["user"], found["password"]
    if scheme == "github" or (password is None and scheme not in ("http", "https")):
        return found[0]
    return f"{found['scheme']}://{HIDDEN if password is None else f'{user}:{HIDDEN}'}@"
