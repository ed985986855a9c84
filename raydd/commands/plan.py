"""`raydd plan METHOD`: the options of `raydd distill METHOD`, and where the seconds of the estimates come from."""

import dataclasses
import inspect
from typing import Any

from raydd.commands.distill import METHODS, read_request
from raydd.commands.parsing import console, parse
from raydd.errors import UserError, choose
from raydd.evaluate.record import FULL
from raydd.pipelines.plan.make import PlanOptions
from raydd.pipelines.plan.make import plan as make_plan
from raydd.pipelines.plan.text import lines


@dataclasses.dataclass(frozen=True)
class PlanCommand:
    """What a distillation would do: units, images, forwards, bytes, hours and machines. Nothing is written.

    Put METHOD and all options of 'raydd distill METHOD' behind it.
    """

    plan: PlanOptions = PlanOptions()


def plan(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        parse(PlanCommand, "plan METHOD --data SRC --out RUN [options of 'raydd distill METHOD']", ["--help"])
    if args[0] == "distill":
        args = args[1:]
    name = choose("method", args[0] if args else "", METHODS)
    if name == FULL:
        raise UserError(f"{FULL} is a run without images: there is nothing to plan; choose another method")
    found: list[PlanOptions] = []

    def read(kind: Any, name: str, args: list[str], default: Any = None) -> Any:
        parsed = parse(_with_plan(kind), f"plan {name}", args, None if default is None else _with_plan(kind)(default))
        found.append(parsed.plan)
        return parsed.command

    command, method = read_request(name, args[1:], read)
    for line in lines(make_plan(command.job, method, command.resources, found[0])):
        console.print(line, highlight=False, markup=False)


def _with_plan(kind: type) -> type:
    """The options of a method with those of a plan beside them."""
    both = [("command", kind), ("plan", PlanOptions, PlanOptions())]
    made = dataclasses.make_dataclass("Plan" + kind.__name__.removeprefix("Distill"), both, frozen=True)
    made.__doc__ = f"What this would do; nothing is written.\n\n{inspect.cleandoc(kind.__doc__)}"
    return made
