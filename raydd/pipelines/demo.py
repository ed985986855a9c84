"""The whole story on scikit-learn's handwritten digits: `raydd demo` and `jobs/quickstart.py`.

A teacher and a diffusion prior, eight ways to make one or ten images per class, one set doped with originals, three
seeds each, students, a table, a report. All of it is real and small: 1,797 digits at 16 px, so that two CPU cores
finish it in a few minutes.
"""

import dataclasses
import time
from collections.abc import Sequence

from rich.console import Console

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import PRESETS as DSCO
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig, rded
from raydd.distill.ld3m.config import PRESETS as LD3M
from raydd.distill.output import OutputConfig
from raydd.pipelines import prior, teacher
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import FULL, DistillOptions, distill_many, reference
from raydd.pipelines.dope import dope
from raydd.pipelines.dope_request import DopeOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.ld3m import make
from raydd.pipelines.method import Method
from raydd.pipelines.prior import PriorOptions
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples
from raydd.pipelines.show import show
from raydd.pipelines.teacher import TeacherOptions
from raydd.runtime.work import Resources
from raydd.store import filesystem

DATA, SIZE = "digits", 16
# Half the literature's width: a third of the time, and wide enough for digits of this size.
ARCH = "convnet3w64"
# Images per class of the set that LD3M learns: few, because each is optimized through the whole chain.
LEARNED = 1
# Images per class of the generated sets, and originals per class that one of them is doped with.
GENERATED, DOPED = 10, 5
# Fewer steps, less guidance and one noised copy of each digit: enough for a prior of this size.
STEPS, GUIDANCE, ROUNDS = 15, 2.0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Distill scikit-learn's digits with every method and judge the results."""

    # Directory for the teacher, the prior, the runs and the report.
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
    console.print("1/4 teacher and prior: a ConvNet-3 of width 64 and a small diffusion UNet on 1,437 digits")
    train_models(out, options.resources)
    console.print("2/4 distill: random, k-means, RDED, InfoUtil, plain samples of the prior, DsCo, LD3M")
    seeds = range(options.seeds)
    requests = [(_options(out, m.name, ipc, s), m) for ipc in options.ipc for s in seeds for m in methods()]
    # A single image has no distribution to be matched: these are made at one size.
    requests += [(_options(out, m.name, GENERATED, s), m) for s in seeds for m in generators()]
    requests += [(_options(out, learner().name, LEARNED, s), learner()) for s in seeds]
    # The size of the doped set, beside which random images stand.
    total = GENERATED + DOPED
    requests += [(_options(out, m.name, total, s), m) for s in seeds for m in methods()[:1]]
    distill_many(requests, options.resources)
    console.print(f"3/4 dope: {DOPED} originals per class join DsCo's images")
    dopings = [_doping(out, seed) for seed in seeds]
    for doping in dopings:
        # Seconds each: a worker group would take longer to start.
        dope(doping, dataclasses.replace(options.resources, executor="local"))
    ceilings = [_options(out, FULL, ipc, seed) for ipc in options.ipc for seed in seeds]
    for ceiling in ceilings:
        reference(ceiling)
    runs = [request.out for request in (*ceilings, *(r for r, _ in requests), *dopings)]
    console.print(f"4/4 evaluate: {len(runs)} students")
    judge = EvaluateOptions(run=tuple(runs), val=DATA, students=ARCH, protocol=options.protocol, seeds=1, flip=False)
    evaluate(judge, options.resources)
    show(runs, out, "raydd demo: digits", console)
    console.print(f"done in {time.monotonic() - start:.0f} s; run 'raydd demo' again and it finds everything done")


def train_models(out: str, resources: Resources) -> None:
    """The teacher and the prior, in this process: a worker group takes longer to start than the teacher to train."""
    here = dataclasses.replace(resources, executor="local")
    recipe = {"data": DATA, "arch": ARCH, "size": SIZE, "epochs": 20, "batch": 64, "flip": False}
    teacher.train(TeacherOptions(out=filesystem.join(out, "teacher"), **recipe), here)
    prior.train(PriorOptions(data=DATA, out=filesystem.join(out, "prior"), preset="tiny"), here)


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


def generators() -> Sequence[Method]:
    """The rows whose images come from the prior."""
    plain = PriorSamples("prior", PriorConfig(steps=STEPS, guidance=GUIDANCE))
    return plain, Dsco("dsco", dataclasses.replace(DSCO["dsco-fast"](), steps=STEPS, guidance=GUIDANCE, rounds=ROUNDS))


def learner() -> Method:
    """The row whose images are learned through the prior."""
    return make("ld3m", LD3M["ld3m-demo"](), OutputConfig())


def _options(out: str, method: str, ipc: int, seed: int) -> DistillOptions:
    drawn = method in {made.name for made in (*generators(), learner())}
    return DistillOptions(
        data=DATA,
        out=filesystem.join(out, f"{method}-ipc{ipc}-seed{seed}"),
        ipc=ipc,
        seed=seed,
        teacher=filesystem.join(out, "teacher"),
        prior=filesystem.join(out, "prior") if drawn else None,
        scores=filesystem.join(out, "scores"),
    )


def _doping(out: str, seed: int) -> DopeOptions:
    base = _options(out, "dsco", GENERATED, seed).out
    scores = filesystem.join(out, "scores")
    return DopeOptions(
        run=base,
        out=f"{base}-doped",
        per_class=DOPED,
        flip=False,
        scores=scores,
        student=ARCH,
        protocol="soft@50",
    )
