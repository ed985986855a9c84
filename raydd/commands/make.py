"""Commands that make what distillation needs, or add to it: teachers, priors, expert trajectories, scores, doping,
stored labels; and the demo."""

import dataclasses
import time
from typing import Literal

from raydd.commands.parsing import console, parse
from raydd.pipelines import dope as doping
from raydd.pipelines import experts as expert_training
from raydd.pipelines import prior as prior_training
from raydd.pipelines import teacher as teaching
from raydd.pipelines.demo import DemoOptions, run_demo
from raydd.pipelines.dope_request import DopeOptions
from raydd.pipelines.evaluate_request import RecipeOptions
from raydd.pipelines.experts import ExpertOptions
from raydd.pipelines.prior import PriorOptions
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.score import feature_scoring, fill_tables, open_table
from raydd.pipelines.store_labels import store_views
from raydd.pipelines.teacher import TeacherOptions
from raydd.runtime.work import Resources
from raydd.score.table import ScoreConfig


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


@dataclasses.dataclass(frozen=True)
class TrainPrior:
    """Train a class-conditional diffusion prior from scratch; diffusers loads what it writes.

    --preset tiny|small|cifar learns pixels, dit-s|dit-b the latents of --autoencoder.
    """

    job: PriorOptions
    resources: Resources = Resources()


def train_prior(args: list[str]) -> None:
    command = parse(TrainPrior, "train-prior", args)
    start = time.monotonic()
    facts = prior_training.train(command.job, command.resources)
    console.print(
        f"prior of {len(facts['classes'])} classes in {command.job.out} ({time.monotonic() - start:.0f} s); "
        f"samples: {command.job.out}/samples"
    )


@dataclasses.dataclass(frozen=True)
class TrainExperts:
    """Train expert trajectories on real images, which LD3M's MTT loss follows: parameters before and after each epoch.

    Experts are trained side by side; a larger --count later adds experts to those that are there.
    """

    job: ExpertOptions
    resources: Resources = Resources()


def train_experts(args: list[str]) -> None:
    command = parse(TrainExperts, "train-experts", args)
    experts = expert_training.train(command.job, command.resources)
    accuracy = " ".join(f"{100 * value:.1f}" for value in experts.accuracy)
    console.print(
        f"{experts.count} experts of {experts.arch}, {experts.epochs} epochs and {experts.parameters:,} parameters "
        f"each, in {command.job.out}: top-1 on {experts.measured_on} after 0 .. {experts.epochs} epochs {accuracy} %"
    )


@dataclasses.dataclass(frozen=True)
class Dope:
    """Add selected originals to a distilled set of any method, as a new run beside it.

    A model trained on the set scores all originals; those it is least sure of are added, as many as --per-class N or
    --fraction F of the source ask for.
    """

    job: DopeOptions
    resources: Resources = Resources()


def dope(args: list[str]) -> None:
    command = parse(Dope, "dope", args)
    manifest = doping.dope(command.job, command.resources)
    facts = manifest["doping"]
    console.print(
        f"{manifest['method']}: {facts['distilled']} distilled images and {facts['originals']} originals, "
        f"{100 * facts['share']:.1f} % of the source, in {command.job.destination}/distilled"
    )


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
        count = store_views(uri, command.job, command.codec)
        console.print(f"{uri}: {count / 1e6:.2f} MB of labels in {uri}/distilled/views")
