"""How every script of this folder starts and ends, under `ray job submit` or plain `python`.

raydd is imported from where it is installed, else from the working directory that the job was submitted with. A
failure that the user can mend ends in one line and exit code 2, which is then the job's; `--debug` shows all of it.
The scripts keep no state: submitted again after any failure they go on where they stopped.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

if importlib.util.find_spec("raydd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydd import cli
from raydd.errors import UserError


def run(call: Callable[[list[str]], None]) -> None:
    """Call a function with the script's arguments, with the exit codes of the command line."""
    debug = "--debug" in sys.argv
    try:
        call([arg for arg in sys.argv[1:] if arg != "--debug"])
    except UserError as error:
        cli.fail(error, debug)


def command(*name: str) -> None:
    """Run the `raydd` command of this name with the script's arguments."""
    cli.main([*name, *sys.argv[1:]])
