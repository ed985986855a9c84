"""What each command does with its parsed options: a few lines over a pipeline."""

import argparse
import contextlib
import dataclasses
import io
from typing import Any, Literal

import tyro
from rich.console import Console

from raydd.distill.controls import CONTROLS, ControlConfig
from raydd.distill.infoutil.config import PRESETS, CropConfig, InfoUtilConfig, SelectConfig
from raydd.errors import UserError, choose
from raydd.evaluate.compare import compare as build_blocks
from raydd.evaluate.record import FULL, read_results
from raydd.pipelines import distill as distilling
from raydd.pipelines import evaluate as evaluating
from raydd.pipelines import teacher as teaching
from raydd.pipelines.controls import Control
from raydd.pipelines.demo import DemoOptions, run_demo
from raydd.pipelines.evaluate import EvaluateOptions, RecipeOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.score import feature_scoring, fill_tables, open_table
from raydd.pipelines.teacher import TeacherOptions
from raydd.report.page import write_report
from raydd.report.tables import print_table
from raydd.runtime.work import Resources
from raydd.score.table import ScoreConfig
from raydd.store import export as exporting
from raydd.store import filesystem
from raydd.store.run import Run

console = Console(soft_wrap=True)
METHODS = {
    "infoutil": "crops where the teacher's Shapley values are high, chosen by gradient norm, tiled to mosaics",
    "rded": "random resized crops with the lowest loss, tiled to mosaics (a setting of InfoUtil's pipeline)",
    "random": "whole images at random",
    "kmeans": "the images nearest to k-means centers of the teacher's features",
    "herding": "images whose mean feature stays closest to the class mean",
    FULL: "no distillation: the whole source, as the ceiling of a comparison",
}
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
        raise UserError(f"{_one_line(complaint.getvalue())}; 'raydd {command} --help' explains every option") from stop


def _one_line(box: str) -> str:
    """What a parser says in a framed box, without its frame and its closing advice."""
    lines = [line.strip(FRAME) for line in box.split("For full helptext")[0].splitlines()]
    return " ".join(line for line in lines if line)


def demo(args: list[str]) -> None:
    run_demo(parse(DemoOptions, "demo", args), console)


@dataclasses.dataclass(frozen=True)
class TrainTeacher:
    """Train a teacher on a source: the converged one, and an early one that labels small sets."""

    job: TeacherOptions
    resources: Resources = Resources()


def train_teacher(args: list[str]) -> None:
    command = parse(TrainTeacher, "train-teacher", args)
    info = teaching.train(command.job, command.resources)
    console.print(f"teacher {info.arch} in {command.job.out}: top-1 {100 * (info.top1 or 0):.1f} %")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTarget:
    """What to score, and where the table goes."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Run directory; RUN/scores holds the table by label.
    out: str
    # Teacher: directory of `train-teacher`, `NAME:pretrained` of torchvision, or a checkpoint file.
    teacher: str
    # Architecture of a checkpoint file that has no JSON beside it.
    teacher_arch: str | None = None
    # Working size in pixels; None takes the teacher's.
    size: int | None = None
    # Images per forward of the teacher.
    batch: int = 64
    # Arithmetic of the Shapley games.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Score again.
    force: bool = False


@dataclasses.dataclass(frozen=True)
class Score:
    """Compute scores of every source image, in one resumable pass.

    --scores takes names separated by commas: features, shapley, gradnorm, gradnorm_last, el2n, loss, margin.
    """

    job: ScoreTarget
    what: ScoreConfig = ScoreConfig()
    resources: Resources = Resources()


def score(args: list[str]) -> None:
    command = parse(Score, "score", args)
    names = tuple(part.strip() for word in command.what.scores for part in word.split(",") if part.strip())
    config = dataclasses.replace(command.what, scores=names)
    job = open_job(DistillOptions(**dataclasses.asdict(command.job), seed=config.seed))
    table = open_table(job, feature_scoring(job, config), shared=None, force=command.job.force)
    fill_tables([table], command.resources)
    facts = table.run.read()["stages"]["score"]
    console.print(f"{', '.join(names)} of {facts['images']} images in {job.out}/scores ({facts['dropped']} dropped)")


@dataclasses.dataclass(frozen=True)
class DistillInfoUtil:
    """InfoUtil: crops by Shapley values, selection by gradient norm, mosaics, a teacher's soft labels.

    --preset default|paper|fast|rded|random_windows sets all switches at once; the ones given here are changed on top.
    """

    job: DistillOptions
    crop: CropConfig = CropConfig()
    select: SelectConfig = SelectConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillControl:
    """A control: real images chosen at random, by k-means, or by herding."""

    job: DistillOptions
    control: ControlConfig = ControlConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillFull:
    """The whole source as the ceiling: a run without images; `evaluate` trains it for the steps of a set of --ipc."""

    job: DistillOptions


def distill(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        distill_overview()
        return
    name, args = choose("method", args[0], METHODS), args[1:]
    if name == FULL:
        command = parse(DistillFull, f"distill {name}", args)
        manifest = distilling.reference(command.job)
        console.print(f"{FULL}: stands for the whole of {manifest['source']['uri']} in {command.job.out}")
        return
    if name in CONTROLS:
        command = parse(DistillControl, f"distill {name}", args)
        method = Control(name, command.control)
    else:
        command, method = _infoutil(name, args)
    manifest = distilling.distill(command.job, method, command.resources)
    console.print(
        f"{manifest['method']}: {manifest['images']} images, {manifest['image_bytes'] / 1e6:.2f} MB, revision "
        f"{manifest['revision']}, in {command.job.out}/distilled"
    )


def distill_overview() -> None:
    """The methods, one line each."""
    print("usage: raydd distill METHOD --data SRC --out RUN --ipc N [options]\n")
    for name, summary in METHODS.items():
        print(f"  {name:10} {summary}")
    print("\n'raydd distill METHOD --help' explains every option of a method.")


def _infoutil(name: str, args: list[str]) -> tuple[DistillInfoUtil, InfoUtil]:
    preset, args = _take_preset(args, "rded" if name == "rded" else "default")
    base = PRESETS[preset]()
    default = DistillInfoUtil(_missing_options(), base.crop, base.select)
    command = parse(DistillInfoUtil, f"distill {name}", args, default)
    label = name if preset in ("default", name) else f"{name}-{preset}"
    return command, InfoUtil(label, InfoUtilConfig(crop=command.crop, select=command.select))


def _missing_options() -> DistillOptions:
    return DistillOptions(data=tyro.MISSING, out=tyro.MISSING)


def _take_preset(args: list[str], default: str) -> tuple[str, list[str]]:
    """Presets are applied before parsing, so that --help shows their values as the defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", nargs="?", default=default, const="")
    found, rest = parser.parse_known_args(args)
    return choose("preset", found.preset, PRESETS), rest


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
class StoreLabels:
    """Store the label teacher's logits of every view of the first soft protocol, under RUN/distilled/views.

    'raydd evaluate --labels views' then trains on them without running the teacher.
    """

    job: RecipeOptions
    # How logits are stored: fp32, fp16, or int8 with a scale and an offset per view.
    codec: Literal["fp16", "fp32", "int8"] = "fp16"


def store_labels(args: list[str]) -> None:
    command = parse(StoreLabels, "store-labels", args)
    for uri in command.job.run:
        count = evaluating.store_views(uri, command.job, command.codec)
        console.print(f"{uri}: {count / 1e6:.2f} MB of labels in {uri}/distilled/views")


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
