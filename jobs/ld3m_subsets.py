"""LD3M on named subsets of ImageNet beside its controls: experts for MTT, sets, students, one table and report each.

The defaults are the paper's at 128 px (arXiv 2403.03881: 10 sampling steps, guidance 3, GLaD's protocol), with DiT-XL/2
for the prior. Everything of a subset lies below OUT/SUBSET. The controls are random images, pixels learned by the same
loss, the autoencoder without the diffusion chain, and the start of LD3M, its images before the first iteration. With
`--start kmeans` all of these start from the images that k-means chose, which did better than random ones on MNIST.

ray job submit --working-dir . -- python jobs/ld3m_subsets.py --data s3://bucket/imagenet --out s3://bucket/ld3m \
    --subsets imagenette,imagewoof
"""

import dataclasses
import json
from typing import Any, Literal

from start import run

from raydd.commands.parsing import console, parse
from raydd.data.subsets import SUBSETS, subset_name
from raydd.distill.controls import ControlConfig
from raydd.distill.ld3m.config import Ld3mConfig, autoencoder, pixels
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.models.registry import default_students
from raydd.models.teacher import PRETRAINED
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill_many
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.experts import ExpertOptions, train_many
from raydd.pipelines.job import opened
from raydd.pipelines.ld3m import Ld3m, make
from raydd.pipelines.method import Method
from raydd.pipelines.request import DistillOptions
from raydd.pipelines.show import show
from raydd.runtime.work import Resources
from raydd.store import filesystem

BY_INDEX = "imagenet"
WHOLE = "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetOptions:
    """LD3M and its controls on one or several subsets of one source, judged by the same students."""

    # Source that the subsets are of: ImageNet by path or URI, as an ImageFolder tree, Parquet files or WebDataset tars.
    data: str
    # Directory or URI for the experts, the runs and the reports.
    out: str
    # Subsets of ImageNet by name, separated by commas; None takes the source as it is.
    subsets: str | None = "imagenette,imagewoof"
    # Validation source, of which the subsets are taken too; None takes the source's own val part.
    val: str | None = None
    # Diffusion prior: directory of `train-prior`, or a pipeline that diffusers loads (local or a hub's name).
    prior: str = "facebook/DiT-XL-2-256"
    # The prior's label of a class: imagenet takes the class's index in ImageNet-1K (as DiT does), None matches names,
    # else a JSON file {source class: the prior's class or label}.
    class_map: str | None = BY_INDEX
    # Teacher: directory of `train-teacher`, or `NAME:pretrained` of torchvision. With one there is a row of k-means,
    # and protocols with soft labels work.
    teacher: str | None = None
    # Working size in pixels.
    size: int = 128
    # Images per class.
    ipc: tuple[int, ...] = (1,)
    # Images that LD3M and its controls start from: real ones drawn at random, as in the paper, or those of k-means.
    start: Literal["real", "kmeans"] = "real"
    # Matching loss.
    loss: Literal["dm", "dc", "mtt"] = "dm"
    # Sampling steps; None takes the paper's: 10, and 20 from 256 px.
    steps: int | None = None
    # Iterations of every optimization.
    iterations: int = 1000
    # Matching network, and that of the experts; None takes the literature's ConvNet for the size.
    matcher: str | None = None
    # Expert trajectories to train for each subset, for --loss mtt.
    experts: int = 100
    # Seed of every random draw of the distillation, and of the first student.
    seed: int = 0
    # Student architectures, separated by commas; None takes the ConvNet of the size and the literature's unseen four.
    students: str | None = None
    # Protocols, separated by commas.
    protocol: str = "glad"
    # Students per set, protocol and architecture.
    seeds: int = 3
    # Whether protocols may mirror images.
    flip: bool = True
    resources: Resources = Resources()

    def groups(self) -> list["Group"]:
        """The subsets that are named, each once; raises `UserError` for an unknown one, or a start that cannot be."""
        if self.start == "kmeans" and not self.teacher:
            raise UserError("--start kmeans chooses by the features of a teacher: add --teacher, or use --start real")
        if self.subsets is None:
            return [Group(self, None)]
        names = [name.strip() for name in self.subsets.split(",") if name.strip()]
        if not names:
            raise UserError(f"--subsets {self.subsets!r} names none: try --subsets imagenette, or --subsets None")
        return [Group(self, name) for name in dict.fromkeys(map(subset_name, names))]

    @property
    def judges(self) -> str:
        """The students: one that was matched with, and four that were not."""
        return self.students or f"{default_students(self.size)[0]},resnet18_cifar,vgg11_dd,alexnet_dd,vit_dd"


@dataclasses.dataclass(frozen=True)
class Group:
    """One subset of the job: where it is read from, where its results go, and its runs."""

    options: SubsetOptions
    subset: str | None

    @property
    def name(self) -> str:
        return self.subset or WHOLE

    @property
    def data(self) -> str:
        return self._of(self.options.data)

    @property
    def val(self) -> str:
        return self._of(self.options.val or self.options.data)

    @property
    def out(self) -> str:
        return filesystem.join(filesystem.absolute(self.options.out), self.name)

    def _of(self, uri: str) -> str:
        return f"{uri}#{self.subset}" if self.subset else uri

    def trained(self) -> ExpertOptions:
        """The experts of this group alone."""
        o = self.options
        # Published weights are normalized as everything is without a teacher.
        teacher = o.teacher if o.teacher and not PRETRAINED.fullmatch(o.teacher) else None
        out = filesystem.join(self.out, "experts")
        return ExpertOptions(
            data=self.data, out=out, arch=o.matcher, size=o.size, count=o.experts, seed=o.seed, teacher=teacher
        )

    def controls(self) -> list[Control]:
        """Real images, which LD3M may start from."""
        return [Control(name, ControlConfig()) for name in ("random", *(["kmeans"] if self.options.teacher else []))]

    def methods(self, ipc: int) -> list[Method]:
        """LD3M last, after its controls; those of real images are made already if it starts from them."""
        steps = self.options.steps
        if steps is None:
            steps = 20 if self.options.size >= 256 else 10
        ld3m = Ld3mConfig(steps=steps)
        return [
            *self.controls(),
            self._learned("ld3m-start", ld3m, ipc, iterations=0, heldout=0),
            self._learned("ld3m-pixels", pixels(), ipc, **self._matched()),
            self._learned("ld3m-autoencoder", autoencoder(), ipc, **self._matched()),
            self._learned("ld3m", ld3m, ipc, **self._matched()),
        ]

    def _matched(self) -> dict[str, Any]:
        o = self.options
        by = {"experts": self.trained().out} if o.loss == "mtt" else {"matcher": o.matcher}
        return {"loss": o.loss, "iterations": o.iterations} | by

    def _learned(self, name: str, way: Ld3mConfig, ipc: int, **switches) -> Ld3m:
        loss = switches.get("loss", "dm")
        if self.options.start == "kmeans":
            name = f"{name}-from-kmeans"
            switches["init"] = self._place("kmeans", ipc)
        name = name if loss == "dm" else f"{name}-{loss}"
        return make(name, dataclasses.replace(way, **switches), OutputConfig())

    def _place(self, method: str, ipc: int) -> str:
        return filesystem.join(self.out, f"{method}-ipc{ipc}-seed{self.options.seed}")

    def first(self) -> list[tuple[DistillOptions, Method]]:
        """What is to be made before LD3M can start from it."""
        if self.options.start == "real":
            return []
        return [(self._request(ipc, method, None), method) for ipc in self.options.ipc for method in self.controls()]

    def requests(self, class_map: str | None) -> list[tuple[DistillOptions, Method]]:
        """What to distill with every method and IPC, and where to."""
        made = ((ipc, method) for ipc in self.options.ipc for method in self.methods(ipc))
        return [(self._request(ipc, method, class_map), method) for ipc, method in made]

    def _request(self, ipc: int, method: Method, class_map: str | None) -> DistillOptions:
        o = self.options
        drawn = isinstance(method, Ld3m) and method.learn.generator == "prior"
        # The outputs of published weights are ImageNet's indices.
        pretrained = self.subset and o.teacher and PRETRAINED.fullmatch(o.teacher)
        return DistillOptions(
            data=self.data,
            out=self._place(method.name, ipc),
            ipc=ipc,
            seed=o.seed,
            size=o.size,
            teacher=o.teacher,
            teacher_rows=SUBSETS[self.subset] if pretrained else None,
            prior=o.prior if drawn else None,
            class_map=class_map if drawn else None,
            scores=filesystem.join(self.out, "scores"),
        )

    def class_map(self) -> str | None:
        """The file that says which of the prior's labels is whose; written here where ImageNet's indices are it."""
        if self.options.class_map != BY_INDEX:
            return self.options.class_map
        if self.subset is None:
            return None
        pairs = dict(zip(opened(self.data, "train").classes, SUBSETS[self.subset]))
        uri, content = filesystem.join(self.out, "class_map.json"), json.dumps(pairs, indent=1).encode()
        if not filesystem.exists(uri) or filesystem.read_bytes(uri) != content:
            filesystem.write_atomic(uri, content)
        return uri


def main(args: list[str]) -> None:
    """Train experts if the loss follows them, make all sets, judge them, and show every subset's result."""
    options = parse(SubsetOptions, "jobs/ld3m_subsets.py", args)
    groups = options.groups()
    if options.loss == "mtt":
        train_many([group.trained() for group in groups], options.resources)
    if first := [request for group in groups for request in group.first()]:
        distill_many(first, options.resources)
    requests = {group: group.requests(group.class_map()) for group in groups}
    # The sets of all subsets share one queue, and so do the students of each.
    distill_many([request for some in requests.values() for request in some], options.resources)
    for group, some in requests.items():
        runs = tuple(request.out for request, _ in some)
        judge = EvaluateOptions(
            run=runs,
            val=group.val,
            students=options.judges,
            protocol=options.protocol,
            seeds=options.seeds,
            flip=options.flip,
        )
        evaluate(judge, options.resources)
        show(runs, group.out, f"raydd: LD3M on {group.name}", console)


run(main)
