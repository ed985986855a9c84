"""The `raydd` command: parse, call one pipeline, say what came of it. Errors are one line and exit code 2."""

import dataclasses
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import raydd
from raydd.errors import UserError, choose, redact
from raydd.store.reach import FULL


@dataclasses.dataclass(frozen=True)
class Command:
    """One line of `raydd --help`, and the module and function that carry it out."""

    summary: str
    function: str

    def load(self) -> Callable[[list[str]], None]:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)


# Modules are imported when their command is called, so that `raydd --help` does not wait for torch.
COMMANDS = {
    "demo": Command("the whole story on the packaged digits: a table and a report", "raydd.commands.make:demo"),
    "train-teacher": Command("train a teacher on a source", "raydd.commands.make:train_teacher"),
    "train-prior": Command("train a diffusion prior on a source", "raydd.commands.make:train_prior"),
    "train-experts": Command("train expert trajectories for LD3M's MTT loss", "raydd.commands.make:train_experts"),
    "score": Command("compute scores of every source image in one pass", "raydd.commands.make:score"),
    "distill": Command("make a distilled set: METHOD --data SRC --out RUN --ipc N", "raydd.commands.distill:distill"),
    "plan": Command("what a distillation would do, cost and ask for: METHOD ...", "raydd.commands.plan:plan"),
    "dope": Command("add selected originals to a distilled set", "raydd.commands.make:dope"),
    "evaluate": Command("train students on distilled sets and test them", "raydd.commands.judge:evaluate"),
    "store-labels": Command("store the teacher's logits of every training view", "raydd.commands.make:store_labels"),
    "compare": Command("one table over several runs", "raydd.commands.judge:compare"),
    "export": Command("write a distilled set as imagefolder, webdataset or huggingface", "raydd.commands.judge:export"),
    "report": Command("write report.html of a run", "raydd.commands.judge:report"),
    "status": Command("how far a run is, and which job writes it", "raydd.commands.judge:status"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command; exits with 0, or 2 after an error that the user can mend."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not debug:
        # Torch warns about its own internals, Pillow about each odd image; what a user can mend is said by raydd.
        warnings.filterwarnings("ignore", module=r"(torch|PIL)\.")
    try:
        dispatch(args)
    except UserError as error:
        fail(error, debug)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail(UserError(f"disk full ({error}): free space and run the same command again"), debug)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def fail(error: UserError, debug: bool) -> None:
    """Say an error in one line, or whole with --debug, and exit with 2."""
    if sys.stdout.isatty():
        # Progress may stand there, unfinished.
        print("\r\x1b[2K", end="", flush=True)
    if debug:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    else:
        # Names come from data and may hold what a terminal obeys.
        line = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
        print(f"raydd: {line}", file=sys.stderr)
    sys.exit(2)


def dispatch(args: list[str]) -> None:
    """Run one command with its arguments."""
    if not args or args[0] in ("-h", "--help"):
        overview()
    elif args[0] == "--version":
        print(raydd.__version__)
    else:
        COMMANDS[choose("command", args[0], COMMANDS)].load()(args[1:])


def overview() -> None:
    print("usage: raydd COMMAND [options]     (raydd COMMAND --help explains every option)\n")
    for name, command in COMMANDS.items():
        print(f"  {name:14} {command.summary}")
    print("\nAll commands take --debug, and --executor ray|local where they compute.")


if __name__ == "__main__":
    main()
