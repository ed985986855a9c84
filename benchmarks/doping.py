"""Accuracy against the share of the data: doped sets beside random originals, chosen originals alone, and all the data.

    python benchmarks/doping.py --data SRC --teacher DIR --prior DIR --out RUNS --name digits [--fractions .1,.25,.5]

The claim of DsCo (arXiv 2603.27987): about half the data, doped, trains as well as all of it. Every row sees the same
number of training images in all (`--seen`), with the same labels; the last epoch counts. One student per distillation
seed, whose initialization and batch order do not depend on the row. Resumable; prints a table, writes
`benchmarks/results/doping-NAME.md`, and ends with one JSON line: per row, the smallest share within half a point of all
the data.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import statistics
import sys

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import PRESETS
from raydd.evaluate.record import FULL, read_results
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill_many, reference
from raydd.pipelines.dope import dope
from raydd.pipelines.dope_request import DopeOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.job import opened
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Resources
from raydd.store.run import Run

RESULTS = pathlib.Path(__file__).parent / "results"
# How originals join: (the set that is doped, switches of the doping).
DOPED = {
    "dsco + hardest": ("dsco", {}),
    "dsco + hardest globally": ("dsco", {"scope": "global"}),
    "dsco + easiest": ("dsco", {"order": "highest"}),
    "random + hardest": ("random", {}),
    "hardest alone": ("dsco", {"keep": False}),
    "easiest alone": ("dsco", {"keep": False, "order": "highest"}),
}
ROWS = ("random", *DOPED)
NEAR = 0.005


def main() -> None:
    """Distill, dope, judge, print."""
    args = parse()
    here = Resources(executor=args.executor, workers=args.workers, threads=args.threads)
    source = opened(args.data, "train")
    total, classes = len(source), len(source.classes)
    sizes = {fraction: round(fraction * total / classes) for fraction in args.fractions}
    seeds = range(args.seeds)
    bases = [(ask(args, name, args.ipc, seed), method(args, name)) for name in ("dsco", "random") for seed in seeds]
    randoms = [(ask(args, "random", size, seed), method(args, "random")) for size in sizes.values() for seed in seeds]
    distill_many(bases + (randoms if "random" in args.rows else []), here)
    runs: dict[tuple[str, float], list[str]] = {}
    for fraction, size in sizes.items():
        for row in args.rows:
            runs[row, fraction] = [place(args, row, fraction, size, seed, here) for seed in seeds]
    # What the smallest class holds sets the steps of the ceiling, which trains on every image.
    whole = min(source.counts())
    ceilings = [ask(args, FULL, whole, seed) for seed in seeds]
    for ceiling in ceilings:
        reference(ceiling)
    runs[FULL, 1.0] = [ceiling.out for ceiling in ceilings]
    for (_, fraction), uris in runs.items():
        epochs = max(1, round(args.seen / classes / sizes.get(fraction, whole)))
        judge(args, uris, f"{args.protocol}@{epochs}", here)
    report(args, {key: [accuracy(uri) for uri in uris] for key, uris in runs.items()})


def method(args: argparse.Namespace, name: str) -> Control | Dsco:
    """The two ways in which the smaller part is made."""
    if name == "random":
        return Control("random", ControlConfig(label_teacher="converged"))
    return Dsco(args.preset, dataclasses.replace(PRESETS[args.preset](), steps=args.steps, guidance=args.guidance))


def ask(args: argparse.Namespace, name: str, ipc: int, seed: int) -> DistillOptions:
    """A run of one size and seed."""
    return DistillOptions(
        data=args.data,
        out=f"{args.out}/{name}-ipc{ipc}-seed{seed}",
        ipc=ipc,
        seed=seed,
        teacher=args.teacher,
        prior=args.prior if name == "dsco" else None,
        scores=f"{args.out}/scores",
    )


def place(args: argparse.Namespace, row: str, fraction: float, size: int, seed: int, here: Resources) -> str:
    """The run of a row at one size, made if it is not there."""
    if row == "random":
        return ask(args, "random", size, seed).out
    base, switches = DOPED[row]
    doping = DopeOptions(
        run=ask(args, base, args.ipc, seed).out,
        out=f"{args.out}/{row.replace(' ', '-')}-{fraction:g}-seed{seed}",
        fraction=fraction,
        flip=args.flip,
        protocol=f"{args.protocol}@{args.doping_epochs}",
        student=args.student,
        precision=args.precision,
        scores=f"{args.out}/scores",
        **switches,
    )
    dope(doping, here)
    return doping.out


def judge(args: argparse.Namespace, uris: list[str], protocol: str, here: Resources) -> None:
    options = {"students": args.student, "protocol": protocol, "flip": args.flip, "precision": args.precision}
    evaluate(EvaluateOptions(run=tuple(uris), val=args.data, seeds=1, **options), here)


def accuracy(uri: str) -> float:
    (evaluation,) = read_results(Run(uri)).evaluations
    return evaluation.seeds[0].last


def report(args: argparse.Namespace, found: dict[tuple[str, float], list[float]]) -> None:
    """A table of rows by share, in Markdown and on the terminal, and the JSON line."""
    ceiling = statistics.mean(found[FULL, 1.0])
    lines = [
        "| | " + " | ".join(f"{100 * f:g} %" for f in args.fractions) + " |",
        "|---" * (len(args.fractions) + 1) + "|",
    ]
    smallest = {}
    for row in args.rows:
        cells = [found[row, fraction] for fraction in args.fractions]
        lines.append(f"| {row} | " + " | ".join(cell(values) for values in cells) + " |")
        near = [f for f, values in zip(args.fractions, cells) if statistics.mean(values) >= ceiling - NEAR]
        smallest[row] = min(near, default=None)
    lines.append(f"| all the data | {cell(found[FULL, 1.0])} |" + " |" * (len(args.fractions) - 1))
    command = f"python benchmarks/{shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])}"
    for word in (args.data, args.teacher, args.prior, args.out):
        command = command.replace(word, word.rstrip("/").rsplit("/", 1)[-1])
    RESULTS.mkdir(exist_ok=True)
    text = f"# {args.name}\n\n`{command}`\n\nTop-1 % of {args.seeds} seeds, last epoch.\n\n" + "\n".join(lines) + "\n"
    (RESULTS / f"doping-{args.name}.md").write_text(text)
    print(text)
    print(json.dumps({"name": args.name, "all_the_data": round(100 * ceiling, 2), "smallest_share_near": smallest}))


def cell(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="source")
    parser.add_argument("--teacher", required=True, help="directory of train-teacher")
    parser.add_argument("--prior", required=True, help="directory of train-prior")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--name", required=True, help="name of the result file")
    parser.add_argument("--fractions", default="0.1,0.25,0.5", type=lambda text: [float(p) for p in text.split(",")])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--ipc", type=int, default=10, help="images per class before doping")
    parser.add_argument("--preset", default="dsco-fast", choices=PRESETS)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seen", type=int, default=60_000, help="training images that every student sees in all")
    parser.add_argument("--doping-epochs", type=int, default=100)
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--protocol", default="soft")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--executor", default="ray", choices=("ray", "local"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    return args


if __name__ == "__main__":
    main()
