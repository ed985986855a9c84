"""What a person sees at the end of a job: one table and one report over several runs."""

from collections.abc import Sequence

from rich.console import Console

from raydd.evaluate.compare import compare
from raydd.evaluate.record import read_results
from raydd.report.page import write_report
from raydd.report.tables import print_table
from raydd.store import filesystem
from raydd.store.run import Run


def show(runs: Sequence[str], out: str, title: str, console: Console) -> None:
    """Print the table over the evaluated runs (by URI) and write `OUT/report.html`."""
    opened = [Run(uri) for uri in runs]
    print_table(compare([read_results(run) for run in opened]), console)
    report = write_report(opened, filesystem.join(filesystem.absolute(out), "report.html"), title)
    console.print(f"report: {report}")
