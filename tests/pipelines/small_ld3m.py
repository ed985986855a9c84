"""LD3M so small that a whole distillation takes a second: three classes of digits at 8 px, a few iterations."""

from pathlib import Path

import torch

from raydd.data.decode import decode_image
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.output import OutputConfig
from raydd.pipelines.distill import distill, prepare
from raydd.pipelines.experts import ExpertOptions, train
from raydd.pipelines.ld3m import Ld3m, make
from raydd.pipelines.ld3m_work import PackWork
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Context, Resources
from raydd.store import distilled, learned
from raydd.store.learned import Learned
from raydd.store.run import Run

LOCAL = Resources(executor="local")
SIZE = 8
SMALL = {
    "steps": 2,
    "iterations": 3,
    "matcher": "convnet1",
    "real_batch": 4,
    "heldout": 1,
    "chunk": 4,
    "lr_latent": 0.1,
    "lr_cond": 0.01,
}
PIXELS = {"generator": "pixels", "steps": 0, "learn": "latent"}


def method(name: str = "ld3m", **changes) -> Ld3m:
    """The method with small switches, the given ones changed; experts decide their own matcher."""
    if "experts" in changes:
        changes = {"loss": "mtt", "matcher": None, "student_steps": 2, "max_start": 1} | changes
    return make(name, Ld3mConfig(**(SMALL | changes)), OutputConfig())


def options(tree, out, prior: str | None = None, **changes) -> DistillOptions:
    return DistillOptions(data=str(tree), out=str(out), **({"prior": prior, "ipc": 2, "size": SIZE} | changes))


def made(tree, out, prior: str | None = None, *, ask: dict | None = None, **changes) -> dict:
    """Distill with small switches; the manifest."""
    return distill(options(tree, out, **({"prior": prior} | (ask or {}))), method(**changes), LOCAL)


def prepared(tree, out, prior=None, *, ask=None, pack=0, **changes):
    """Descent and start of one pack of a request, before any iteration, and the work that they belong to."""
    request, way = options(tree, out, **({"prior": prior} | (ask or {}))), method(**changes)
    unit = prepare(request, way).units[pack]
    work = PackWork(way.name, way.learn, way.output, unit.job, unit.labels, unit.wanted, unit.work(Context()))
    return *work._prepare(unit.labels), work


def write_experts(tree, out, **changes) -> str:
    """Two experts of two epochs of a narrow ConvNet."""
    small = {"arch": "convnet2", "width": 8, "size": SIZE, "epochs": 2, "batch": 16, "count": 2}
    train(ExpertOptions(data=str(tree), out=str(out), **(small | changes)), LOCAL)
    return str(out)


def pictures(out, label: int) -> torch.Tensor:
    """The committed images of a class, uint8 [n,3,S,S]."""
    images = distilled.read_class(Run(str(out)), label)
    return torch.stack([torch.tensor(decode_image(image.data, SIZE)).permute(2, 0, 1) for image in images])


def kept(out, label: int) -> Learned | None:
    """What was learned for a class."""
    return learned.read_learned(Run(str(out)), label)


def files(out, *folders: str) -> dict[str, bytes]:
    """What a run holds in these folders, done-markers apart, which tell seconds."""
    paths = (path for folder in folders for path in (Path(out) / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if path.suffix != ".json"}
