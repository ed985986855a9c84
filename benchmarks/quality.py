"""The table of the README: methods against controls on real images, one command, resumable.

    python benchmarks/quality.py --data SRC --teacher DIR --out RUNS --name cifar10 [--ipc 1,10] [--protocol soft]

Every row is distilled with `--seeds` seeds and judged by one student per seed, which shares initialization, batch order
and augmentation with the students of all other rows. The last epoch counts. Whatever is done already is not done again.
Prints the table, writes `benchmarks/results/quality-NAME.md` and `.jsonl`, and ends with one JSON line.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import sys

from rich.console import Console
from rows import GENERATED, MTT, ROWS, STARTED, along_experts, changed, started

from raydd.evaluate.compare import compare
from raydd.evaluate.record import read_evaluations, read_results
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import FULL, DistillOptions, distill_many, reference
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.ld3m import Ld3m
from raydd.pipelines.method import Method
from raydd.pipelines.prior_samples import PriorSamples
from raydd.report.page import write_report
from raydd.report.tables import print_table
from raydd.runtime.work import Resources
from raydd.store.run import Run

RESULTS = pathlib.Path(__file__).parent / "results"


MAIN = "full,random,kmeans,herding,rded,random-windows,infoutil"


def main() -> None:
    """Distill, judge, print."""
    args = parse()
    known = ROWS | (along_experts(args.experts) if args.experts else {})
    runs = []
    requests = []
    for ipc in args.ipc:
        for seed in range(args.seeds):
            place = f"{args.out}/{{}}-ipc{ipc}-seed{seed}-{args.label_teacher or 'default'}".format
            for row in args.rows:
                out = place(row)
                runs.append(out)
                options = DistillOptions(
                    data=args.data,
                    out=out,
                    ipc=ipc,
                    seed=seed,
                    teacher=args.teacher,
                    teacher_arch=args.teacher_arch,
                    scores=f"{args.out}/scores",
                    precision=args.precision,
                    prior=args.prior if row in GENERATED or row in STARTED or row in MTT else None,
                )
                if args.report_only:
                    continue
                if row == FULL:
                    reference(options)
                    continue
                method = started(row, place) if row in STARTED else known[row]
                requests.append((options, matched_by(labeled(method, args.label_teacher), args.matcher)))
    if args.report_only:
        report(args, [Run(uri) for uri in runs if read_evaluations(Run(uri))])
        return
    resources = Resources(executor=args.executor, threads=args.threads, workers=args.workers)
    distill_many(requests, resources)
    judge = EvaluateOptions(
        run=tuple(runs),
        val=args.val or args.data,
        students=args.students,
        protocol=args.protocol,
        seeds=1,
        precision=args.precision,
        flip=not args.no_flip,
    )
    evaluate(judge, resources)
    report(args, [Run(uri) for uri in runs])


def labeled(method: Method, teacher: str | None) -> Method:
    """The same method with its labels made by the early or the converged teacher, if one is named."""
    if teacher is None:
        return method
    if isinstance(method, Control | PriorSamples):
        return dataclasses.replace(method, config=dataclasses.replace(method.config, label_teacher=teacher))
    if not isinstance(method, InfoUtil):
        return dataclasses.replace(method, output=dataclasses.replace(method.output, label_teacher=teacher))
    return InfoUtil(method.name, changed(method.config, label_teacher=teacher))


def matched_by(method: Method, matcher: str | None) -> Method:
    """The same method with LD3M's images matched by another network, if one is named."""
    if matcher is None or not isinstance(method, Ld3m) or method.learn.loss == "mtt":
        return method
    return dataclasses.replace(method, learn=dataclasses.replace(method.learn, matcher=matcher))


def report(args: argparse.Namespace, runs: list[Run]) -> None:
    """Table on the terminal and in Markdown, report.html beside the runs, one JSON line per block."""
    blocks = compare([read_results(run) for run in runs])
    command = f"python benchmarks/{shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])}"
    RESULTS.mkdir(exist_ok=True)
    console = Console(record=True, width=150)
    print_table(blocks, console)
    write_report(runs, f"{args.out}/report.html", f"raydd: {args.name}")
    rows = [
        {
            "protocol": block.protocol,
            "student": block.student,
            "method": row.label,
            "ipc": row.ipc,
            "mean": round(100 * row.summary.mean, 2),
            "std": None if row.summary.n < 2 else round(100 * row.summary.std, 2),
            "n": row.summary.n,
        }
        for block in blocks
        for row in block.rows
    ]
    path = RESULTS / f"quality-{args.name}.md"
    text = f"# {args.name}\n\n`{command}`\n\n```\n{console.export_text()}```\n"
    for place in filter(None, (args.data, args.teacher, args.prior, args.experts, args.out)):
        text = text.replace(place, place.rstrip("/").rsplit("/", 1)[-1])
    path.write_text(text)
    print(json.dumps({"name": args.name, "rows": rows}))


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="source")
    parser.add_argument("--val", help="validation source (default: the source's val part)")
    parser.add_argument("--teacher", required=True, help="directory of train-teacher, or a checkpoint file")
    parser.add_argument("--teacher-arch", help="architecture of a checkpoint file")
    parser.add_argument("--prior", help="directory of train-prior, for the rows that draw from one")
    parser.add_argument("--experts", help="directory of train-experts, for the rows of MTT")
    parser.add_argument("--matcher", help="network that matches LD3M's images (default: by size; MTT: the experts')")
    parser.add_argument("--no-flip", action="store_true", help="where a mirrored image is another class")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--ipc", default="1,10", type=lambda text: [int(part) for part in text.split(",")])
    names = f"full, {', '.join([*ROWS, *STARTED])}"
    parser.add_argument("--rows", default=MAIN, type=lambda text: text.split(","), help=f"of {names}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--students", default=None, help="default: those of the image size")
    parser.add_argument("--protocol", default="soft,hard")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of games and students")
    parser.add_argument("--label-teacher", choices=("early", "converged"), help="one for all rows (default: by IPC)")
    parser.add_argument("--report-only", action="store_true", help="show what is done, compute nothing")
    parser.add_argument("--executor", default="ray", choices=("ray", "local"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    unknown = set(args.rows) - {FULL, *ROWS, *STARTED, *(MTT if args.experts else ())}
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}: choose from {names}")
    return args


if __name__ == "__main__":
    main()
