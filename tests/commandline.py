"""The command line as a function, and what a directory holds: for tests of whole commands."""

import contextlib
import dataclasses
import hashlib
import io
from pathlib import Path

from raydd.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def raydd(*args: object) -> Outcome:
    """Run `raydd ARGS` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*args: object) -> str:
    """Run a command that must succeed; what it printed."""
    outcome = raydd(*args)
    assert outcome.code == 0, outcome.err
    return outcome.out


def refused(*args: object) -> str:
    """Run a command that must be refused in one line; the line."""
    outcome = raydd(*args)
    assert outcome.code == 2 and outcome.err.startswith("raydd: "), outcome
    assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    return outcome.err.strip()


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and content hash of every file below a directory."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, hashlib.md5(path.read_bytes()).hexdigest())
        for path in files
    }


def contents(folder: Path) -> dict[str, str]:
    """Content hash of every file below a directory."""
    return {name: content for name, (_, content) in snapshot(folder).items()}
