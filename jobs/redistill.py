"""Make some classes of a distilled set again, and no others: `raydd distill METHOD ... --classes a,b --force`.

Takes the options that the set was made with, and the classes by name; the other classes stay as they are.

ray job submit --working-dir . -- python jobs/redistill.py infoutil --data SRC --out RUN --teacher T --classes tench
"""

import sys

from start import command, run

from raydd.errors import UserError


def redistill(args: list[str]) -> None:
    """Check that classes are named, then distill them."""
    if not any(arg == "--classes" or arg.startswith("--classes=") for arg in args) and "--help" not in args:
        raise UserError("redistill needs --classes a,b: which classes to make again; for all, 'raydd distill --force'")
    sys.argv.append("--force")
    command("distill")


run(redistill)
