"""Commands that judge distilled sets and show them: evaluate, compare, export, report, status."""

import dataclasses
import json
import sys
from typing import Literal

import tyro

from raydd.commands.parsing import console, parse
from raydd.errors import UserError
from raydd.evaluate.compare import compare as build_blocks
from raydd.evaluate.record import read_results
from raydd.pipelines import evaluate as evaluating
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.status import lines, read_status
from raydd.report.page import write_report
from raydd.report.scalars import write_scalars
from raydd.report.tables import print_table
from raydd.runtime.work import Resources
from raydd.store import export as exporting
from raydd.store import filesystem
from raydd.store.run import Run


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Train students on distilled sets and test them; last epoch, mean and deviation over seeds."""

    job: EvaluateOptions
    resources: Resources = Resources()


def evaluate(args: list[str]) -> None:
    command = parse(Evaluate, "evaluate", args)
    evaluating.evaluate(command.job, command.resources)
    print_table(build_blocks([read_results(Run(filesystem.absolute(uri))) for uri in command.job.run]), console)


@dataclasses.dataclass(frozen=True)
class Compare:
    """One table over several runs; rows that may not be compared stand in separate blocks."""

    # Run directories.
    runs: tyro.conf.Positional[tuple[str, ...]]
    # Where to write a report over all of them; None writes none.
    out: str | None = None


def compare(args: list[str]) -> None:
    command = parse(Compare, "compare", args)
    if not command.runs:
        raise UserError("compare needs at least one run directory: raydd compare RUN RUN ...")
    runs = [Run(filesystem.absolute(uri)) for uri in command.runs]
    print_table(build_blocks([read_results(run) for run in runs]), console)
    if command.out:
        console.print(f"report: {write_report(runs, command.out, 'raydd: comparison')}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a distilled set in a layout that other tools read."""

    # Run directory that holds the set.
    run: str
    # Directory or URI to write to.
    out: str
    format: Literal["imagefolder", "webdataset", "huggingface"] = "huggingface"


def export(args: list[str]) -> None:
    command = parse(Export, "export", args)
    exported = exporting.export(Run(filesystem.absolute(command.run)), command.format, command.out)
    console.print(f"{exported.images} images as {command.format} in {command.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page about a run."""

    # Run directory.
    run: str
    # File to write; None takes RUN/report.html.
    out: str | None = None


def report(args: list[str]) -> None:
    command = parse(Report, "report", args)
    run = Run(filesystem.absolute(command.run))
    name = command.run.rstrip("/").rsplit("/", 1)[-1]
    console.print(f"report: {write_report([run], command.out or run.path('report.html'), f'raydd: {name}')}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Say how far a run is, from its files alone: stages, units at work or failed, time left, who writes it."""

    # Run directory, at any path or URI; its job may be at work or long gone.
    run: str
    # Print one JSON object instead of lines.
    json: bool = False
    # Also write the run's numbers so far for TensorBoard into this directory (needs tensorboardX).
    tensorboard: str | None = None


def status(args: list[str]) -> None:
    command = parse(Show, "status", args)
    run = Run(filesystem.absolute(command.run))
    found = read_status(run)
    if command.tensorboard is not None and write_scalars(run, filesystem.absolute(command.tensorboard)) is None:
        # Beside the answer, which may be JSON for a program.
        print("warning: nothing written for TensorBoard: no numbers yet, or no tensorboardX", file=sys.stderr)
    if command.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
        return
    for line in lines(found):
        # Names come from data and may hold what a terminal obeys.
        print("".join(c if c.isprintable() else "?" for c in line))
