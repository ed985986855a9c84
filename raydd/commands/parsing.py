"""From arguments to dataclasses: field comments are the help, complaints are one line."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import tyro
from rich.console import Console

from raydd.errors import UserError, choose

# Of a job's log, where no terminal tells it: the width of a table.
LOG_WIDTH = 120
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH)
Flat = tyro.conf.OmitArgPrefixes
# What the parser draws its boxes with.
FRAME = " \u2500\u2502\u256d\u256e\u256f\u2570"


def parse(kind: Any, command: str, args: list[str], default: Any = None) -> Any:
    """Parse arguments into a dataclass; its field comments are the help. Raises `UserError` in one line."""
    extra = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"raydd {command}", args=args, config=(Flat,), **extra)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        found = "; ".join(_complaints(complaint.getvalue()))
        raise UserError(f"{found}; 'raydd {command} --help' explains every option") from stop


def _complaints(box: str) -> list[str]:
    """What a parser says in a framed box, a line per part: without frame, title, and advice that follows anyway."""
    rows = [row.strip(FRAME) for row in box.split("For full helptext")[0].splitlines()]
    title = next(number for number, row in enumerate(rows) if row)
    parts = [" ".join(part) for full, part in groupby(rows[title + 1 :], bool) if full]
    return [part.removeprefix("Argument helptext: ").rstrip(".") for part in parts]


def take_preset(args: list[str], default: str, presets: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Presets are applied before parsing, so that --help shows their values as the defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", nargs="?", default=default, const="")
    found, rest = parser.parse_known_args(args)
    return choose("preset", found.preset, presets), rest
