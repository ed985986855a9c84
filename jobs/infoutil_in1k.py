"""InfoUtil on ImageNet-1K beside its controls: distill, train students, one table, one report.

The defaults are ImageNet-1K's (arXiv 2601.21296: ResNet-18 teacher, 224 px, 2 x 2 mosaics, IPC 10); any source works.
Each method is a run of its own below --out, and the methods share their score tables where they can.

ray job submit --working-dir . -- python jobs/infoutil_in1k.py --data s3://bucket/imagenet --out s3://bucket/in1k
"""

import dataclasses

from start import run

from raydd.commands.parsing import console, parse
from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, rded
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill_many
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.method import Method
from raydd.pipelines.request import DistillOptions
from raydd.pipelines.show import show
from raydd.runtime.work import Resources
from raydd.store import filesystem


@dataclasses.dataclass(frozen=True, kw_only=True)
class In1kOptions:
    """InfoUtil, RDED and random images of one source, judged by the same students."""

    # Source: a path or URI of an ImageFolder tree, Parquet files or WebDataset tars, or `digits`.
    data: str
    # Directory or URI for the runs and the report.
    out: str
    # Validation source; None takes the source's own val part.
    val: str | None = None
    # Teacher: directory of `train-teacher`, `NAME:pretrained` of torchvision, or a checkpoint file.
    teacher: str = "resnet18:pretrained"
    # Architecture of a checkpoint file that has no JSON beside it.
    teacher_arch: str | None = None
    # Output rows to keep of a teacher with more classes, in the order of the source's classes.
    teacher_rows: tuple[int, ...] | None = None
    # Working size in pixels.
    size: int = 224
    # Tiles per side of a mosaic.
    factor: int = 2
    # Images per class.
    ipc: int = 10
    # Seed of every random draw of the distillation, and of the first student.
    seed: int = 0
    # Student architectures, separated by commas.
    students: str = "resnet18"
    # Protocols, separated by commas.
    protocol: str = "soft"
    # Students per method, protocol and architecture.
    seeds: int = 3
    # Whether protocols may mirror images.
    flip: bool = True
    resources: Resources = Resources()

    def methods(self) -> list[Method]:
        """InfoUtil and its controls, with one number of tiles per mosaic."""
        controls = Control("random", ControlConfig())
        crops = {"rded": rded(), "infoutil": InfoUtilConfig()}
        return [controls, *(InfoUtil(name, self._tiled(config)) for name, config in crops.items())]

    def _tiled(self, config: InfoUtilConfig) -> InfoUtilConfig:
        return dataclasses.replace(config, select=dataclasses.replace(config.select, factor=self.factor))

    def request(self, method: Method) -> DistillOptions:
        """What to distill with one method, and where to."""
        shared = {name: getattr(self, name) for name in ("data", "ipc", "seed", "size", "teacher", "teacher_arch")}
        name = f"{method.name}-ipc{self.ipc}-seed{self.seed}"
        return DistillOptions(
            out=filesystem.join(filesystem.absolute(self.out), name),
            teacher_rows=self.teacher_rows,
            scores=filesystem.join(self.out, "scores"),
            **shared,
        )


def main(args: list[str]) -> None:
    """Distill with every method, judge all of them, and show the result."""
    options = parse(In1kOptions, "jobs/infoutil_in1k.py", args)
    requests = [(options.request(method), method) for method in options.methods()]
    distill_many(requests, options.resources)
    runs = tuple(request.out for request, _ in requests)
    judge = EvaluateOptions(
        run=runs,
        val=options.val or options.data,
        students=options.students,
        protocol=options.protocol,
        seeds=options.seeds,
        flip=options.flip,
    )
    evaluate(judge, options.resources)
    show(runs, options.out, f"raydd: InfoUtil at IPC {options.ipc}", console)


run(main)
