"""DsCo on ImageNet-1K: latents, noise optimization, doping to half the data, students, one table, one report.

The defaults are ImageNet-1K's (arXiv 2603.27987: DiT-XL/2 at 256 px, 50 steps, guidance 4); any source and prior work.
Every set is a run of its own below --out, beside random images and plain samples of the prior. The prior's latents of
the source are made once, whatever is made of them.

ray job submit --working-dir . -- python jobs/dsco_in1k.py --data s3://bucket/imagenet --out s3://bucket/dsco
"""

import dataclasses

from start import run

from raydd.commands.parsing import console, parse
from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill_many
from raydd.pipelines.dope import dope
from raydd.pipelines.dope_request import DopeOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.method import Method
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples
from raydd.pipelines.request import DistillOptions
from raydd.pipelines.show import show
from raydd.runtime.work import Resources
from raydd.store import filesystem


@dataclasses.dataclass(frozen=True, kw_only=True)
class In1kOptions:
    """DsCo, plain samples of its prior and random images of one source, also doped, judged by the same students."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Directory or URI for the runs and the report.
    out: str
    # Validation source; None takes the source's own val part.
    val: str | None = None
    # Diffusion prior: directory of `train-prior`, or a pipeline that diffusers loads (local or a hub's name).
    prior: str = "facebook/DiT-XL-2-256"
    # JSON file {source class: the prior's class or label}, where the prior's class names are not the source's.
    class_map: str | None = None
    # Teacher: directory of `train-teacher`, `NAME:pretrained` of torchvision, or a checkpoint file.
    teacher: str = "resnet18:pretrained"
    # Architecture of a checkpoint file that has no JSON beside it.
    teacher_arch: str | None = None
    # Output rows to keep of a teacher with more classes, in the order of the source's classes.
    teacher_rows: tuple[int, ...] | None = None
    # Working size in pixels.
    size: int = 224
    # Images per class before doping.
    ipc: int = 50
    # Sizes of the doped sets as fractions of the source; none without any.
    fraction: tuple[float, ...] = (0.5,)
    # Sampling steps, and the guidance scale of both DsCo and plain samples.
    steps: int = 50
    guidance: float = 4.0
    # Channels that guidance acts on; first3 is how DiT was released.
    guidance_channels: str = "first3"
    # Seed of every random draw of the distillation, and of the first student.
    seed: int = 0
    # Student architectures, separated by commas.
    students: str = "resnet18"
    # Protocols, separated by commas.
    protocol: str = "dsco_in1k"
    # Students per set, protocol and architecture.
    seeds: int = 3
    # Whether protocols may mirror images.
    flip: bool = True
    resources: Resources = Resources()

    def methods(self) -> list[Method]:
        """DsCo and its controls."""
        sampling = {name: getattr(self, name) for name in ("steps", "guidance", "guidance_channels")}
        return [
            Control("random", ControlConfig()),
            PriorSamples("prior", PriorConfig(**sampling)),
            Dsco("dsco", DscoConfig(**sampling)),
        ]

    def request(self, method: Method) -> DistillOptions:
        """What to distill with one method, and where to."""
        names = ("data", "ipc", "seed", "size", "teacher", "teacher_arch", "teacher_rows", "prior", "class_map")
        name = f"{method.name}-ipc{self.ipc}-seed{self.seed}"
        return DistillOptions(
            out=filesystem.join(filesystem.absolute(self.out), name),
            scores=filesystem.join(self.out, "scores"),
            **{name: getattr(self, name) for name in names},
        )

    def doped(self, base: str, fraction: float) -> DopeOptions:
        """How a finished set is doped, and where to."""
        return DopeOptions(
            run=base,
            out=f"{base}-doped-{fraction:g}",
            data=self.data,
            fraction=fraction,
            flip=self.flip,
            scores=filesystem.join(self.out, "scores"),
        )


def main(args: list[str]) -> None:
    """Distill with every method, dope DsCo's and the random set, judge all of them, and show the result."""
    options = parse(In1kOptions, "jobs/dsco_in1k.py", args)
    requests = [(options.request(method), method) for method in options.methods()]
    distill_many(requests, options.resources)
    runs = [request.out for request, _ in requests]
    for fraction in options.fraction:
        # Doping the random set shows what the synthetic part is worth.
        for base in (runs[0], runs[-1]):
            doping = options.doped(base, fraction)
            dope(doping, options.resources)
            runs.append(doping.out)
    judge = EvaluateOptions(
        run=tuple(runs),
        val=options.val or options.data,
        students=options.students,
        protocol=options.protocol,
        seeds=options.seeds,
        flip=options.flip,
    )
    evaluate(judge, options.resources)
    show(runs, options.out, f"raydd: DsCo at IPC {options.ipc}", console)


run(main)
