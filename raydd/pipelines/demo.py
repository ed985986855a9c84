"""The whole story on scikit-learn's handwritten digits: `raydd demo` and `jobs/quickstart.py`.

A teacher, five ways to choose one or ten images per class, three seeds each, students, a table, a report. All of it is
real and small: 1,797 digits at 16 px, so that two CPU cores finish it in a few minutes.
"""

import dataclasses
import time
from collections.abc import Sequence

from rich.console import Console

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig, rded
from raydd.evaluate.compare import compare
from raydd.evaluate.record import read_results
from raydd.pipelines import teacher
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import FULL, DistillOptions, Method, distill_many, reference
from raydd.pipelines.evaluate import EvaluateOptions, evaluate
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.teacher import TeacherOptions
from raydd.report.page import write_report
from raydd.report.tables import print_table
from raydd.runtime.work import Resources
from raydd.store import filesystem
from raydd.store.run import Run

DATA, SIZE, ARCH = "digits", 16, "convnet3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Distill scikit-learn's digits with every method and judge the results."""

    # Directory for the teacher, the runs and the report.
    out: str = "raydd-demo"
    # Images per class.
    ipc: tuple[int, ...] = (1, 10)
    # Distillation seeds, each with one student.
    seeds: int = 3
    # Recipe that students are trained with: a third of the epochs of `soft`.
    protocol: str = "soft@100"
    # Where work runs.
    resources: Resources = Resources()


def run_demo(options: DemoOptions, console: Console) -> None:
    """Run everything, print the table, and write `report.html`."""
    start = time.monotonic()
    out = filesystem.absolute(options.out)
    trained = filesystem.join(out, "teacher")
    console.print("1/3 teacher: a ConvNet-3 on 1,437 digits")
    recipe = TeacherOptions(data=DATA, out=trained, arch=ARCH, size=SIZE, width=64, epochs=20, batch=64, flip=False)
    # In this process: a worker group would take longer to start than the teacher takes to train.
    teacher.train(recipe, dataclasses.replace(options.resources, executor="local"))
    console.print("2/3 distill: random, k-means, RDED and InfoUtil")
    requests = [
        (_options(out, method.name, ipc, seed), method)
        for ipc in options.ipc
        for seed in range(options.seeds)
        for method in methods()
    ]
    distill_many(requests, options.resources)
    ceilings = [_options(out, FULL, ipc, seed) for ipc in options.ipc for seed in range(options.seeds)]
    for ceiling in ceilings:
        reference(ceiling)
    runs = [request.out for request in ceilings] + [request.out for request, _ in requests]
    console.print(f"3/3 evaluate: {len(runs)} students")
    judge = EvaluateOptions(run=tuple(runs), val=DATA, students=ARCH, protocol=options.protocol, seeds=1, flip=False)
    evaluate(judge, options.resources)
    finish([Run(uri) for uri in runs], out, console)
    console.print(f"done in {time.monotonic() - start:.0f} s; run 'raydd demo' again and it finds everything done")


def methods() -> Sequence[Method]:
    """The rows of the table besides the full set."""
    return (
        Control("random", ControlConfig()),
        Control("kmeans", ControlConfig()),
        InfoUtil("rded", rded()),
        InfoUtil("infoutil", InfoUtilConfig()),
        # The direction of the score is InfoUtil's largest risk: the table shows both ends.
        InfoUtil("infoutil-bottom", InfoUtilConfig(select=SelectConfig(direction="bottom"))),
    )


def _options(out: str, method: str, ipc: int, seed: int) -> DistillOptions:
    return DistillOptions(
        data=DATA,
        out=filesystem.join(out, f"{method}-ipc{ipc}-seed{seed}"),
        ipc=ipc,
        seed=seed,
        teacher=filesystem.join(out, "teacher"),
        scores=filesystem.join(out, "scores"),
    )


def finish(runs: Sequence[Run], out: str, console: Console) -> None:
    """Print the table over all runs and write the report."""
    print_table(compare([read_results(run) for run in runs]), console)
    console.print(f"report: {write_report(list(runs), filesystem.join(out, 'report.html'), 'raydd demo: digits')}")
