"""Teachers: trained classifiers that give soft labels, Shapley games and gradient norms, ready for use.

`load_teacher` reads what `raydd train-teacher` wrote, torchvision's published weights, or a checkpoint file. A wrong
class order fails silently in everything a teacher does, so names are compared where both sides record them
(`check_classes`), and `raydd.models.audit` measures the teacher before anything leans on it.

Limits: torchvision's GoogLeNet, Inception and DenseNet publish weights whose names differ from the networks', and are
refused as misfits. `NAME:pretrained` means the first published weights (V1), as RDED and DsCo use; `NAME:IMAGENET1K_V2`
and the like name others.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydd.config import content_hash
from raydd.errors import UserError, choose
from raydd.models import checkpoint
from raydd.models.checkpoint import ModelInfo
from raydd.models.registry import PREFIX, classifier_layer, resolve_arch
from raydd.models.torchvisions import torchvision_models
from raydd.store import filesystem

CONVERGED, EARLY = "teacher", "early"
PRETRAINED = re.compile(r"((?:torchvision/)?\w+):(pretrained|[A-Z]\w+)")


@dataclass(frozen=True)
class Teacher:
    """A classifier in evaluation mode whose parameters are frozen; `hash` covers weights, network and normalization."""

    model: nn.Module
    info: ModelInfo
    hash: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] (or float in [0, 1]) -> float32 input of `model`, on the device of `images`."""
        return self.info.normalization.apply(images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 logits [B, K] on the teacher's device, without gradients."""
        return self.model(self.normalize(images.to(self.device))).float()


def load_teacher(
    spec: str,
    *,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
    image_size: int | None = None,
    early: bool = False,
    device: str | torch.device = "cpu",
) -> Teacher:
    """Open a teacher named by `spec`.

    * a directory written by `train-teacher`: its converged teacher, or with `early` its early one;
    * `NAME:pretrained` (or `NAME:WEIGHTS`): torchvision's weights, from the torch hub cache or downloaded into it;
    * a `.safetensors` or `.pth` file: described by the JSON beside it, else by `arch` (and `image_size`, and ImageNet's
      normalization).

    `rows` keeps these outputs of the classifier, in this order (a softmax then runs over the kept ones); `classes` then
    names them. Without `rows`, a teacher that records the names of more outputs than `classes` is cut to those by name.
    Raises `UserError` for what is missing, does not fit, or would need unpickling.
    """
    if match := PRETRAINED.fullmatch(spec):
        model, info = _open_pretrained(match[1], match[2], image_size, early)
    elif spec.lower().endswith((checkpoint.WEIGHTS, *checkpoint.TORCH_FILES)):
        model, info = _open_file(spec, arch, image_size, early)
    else:
        model, info = _open_directory(spec, image_size, early)
    if rows is None and classes is not None and len(classes) < info.outputs and set(classes) <= set(info.classes):
        rows = [info.classes.index(name) for name in classes]
    if rows is not None:
        info = _keep_rows(model, info, rows, classes)
    return as_teacher(model, info, device)


def as_teacher(model: nn.Module, info: ModelInfo, device: str | torch.device = "cpu") -> Teacher:
    """Wrap a network: evaluation mode, parameters frozen, moved to `device`, hashed."""
    weights = checkpoint.weights_hash(model.state_dict())
    digest = content_hash((weights, info.arch, info.norm, info.mean, info.std), 16)
    return Teacher(model.eval().requires_grad_(False).to(device), info, digest)


def check_classes(teacher: Teacher, classes: Sequence[str]) -> str | None:
    """Compare the teacher's outputs with the source's class names, in order; returns a warning if names are unknown.

    Raises `UserError` when the number differs, or at the first position with different names.
    """
    info = teacher.info
    if info.outputs != len(classes):
        raise UserError(
            f"teacher has {info.outputs} outputs but the source has {len(classes)} classes: "
            "train one with 'raydd train-teacher --data SRC', or choose the classes it was trained on"
        )
    if not info.classes:
        return f"the teacher ({info.arch}) records no class names: its class order cannot be compared with the source's"
    for position, (own, wanted) in enumerate(zip(info.classes, classes)):
        if own != wanted:
            raise UserError(
                f"teacher output {position} is {own!r} but class {position} of the source is {wanted!r}: "
                "use the teacher's class order, or train one with 'raydd train-teacher --data SRC'"
            )
    return None


def _open_directory(directory: str, image_size: int | None, early: bool) -> tuple[nn.Module, ModelInfo]:
    name = EARLY if early else CONVERGED
    try:
        model, info = checkpoint.load_checkpoint(directory, name)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "early teacher" if early else "teacher"
        raise UserError(
            f"no {what} in {directory} ({name}.safetensors and {name}.json): "
            f"train one with 'raydd train-teacher --data SRC --out {directory}'"
        ) from error
    _check_size(info, image_size, directory)
    return model, info


def _open_file(uri: str, arch: str | None, image_size: int | None, early: bool) -> tuple[nn.Module, ModelInfo]:
    try:
        state = checkpoint.read_weights(uri)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {uri}: check the path") from error
    stem = uri[: uri.rindex(".")]
    if filesystem.exists(stem + checkpoint.INFO):
        info = checkpoint.read_info(stem + checkpoint.INFO)
        _check_size(info, image_size, uri)
        if arch is not None and resolve_arch(arch) != resolve_arch(info.arch):
            raise UserError(f"{uri} is a {info.arch} by its JSON, not {arch}: leave --teacher-arch out")
    elif arch is None:
        raise UserError(f"{uri} does not say what network it is: add --teacher-arch, e.g. --teacher-arch resnet18")
    else:
        size = image_size or (32 if arch.endswith("_cifar") or arch.startswith(("cifar_", "convnet3")) else 224)
        info = ModelInfo(arch=resolve_arch(arch), image_size=size, outputs=0)
    info = dataclasses.replace(info, outputs=checkpoint.count_outputs(state, info.arch, info.image_size, uri))
    return checkpoint.model_from_state(state, info, uri), dataclasses.replace(info, early=early or info.early)


def _open_pretrained(arch: str, which: str, image_size: int | None, early: bool) -> tuple[nn.Module, ModelInfo]:
    if early:
        raise UserError(f"{arch}:{which} has no early version: train one with 'raydd train-teacher', or label with it")
    arch, models = resolve_arch(arch), torchvision_models()
    name = arch.removeprefix(PREFIX)
    choose("torchvision network", name, models.list_models(module=models))
    published = models.get_model_weights(name)
    wanted = "IMAGENET1K_V1" if which == "pretrained" else which
    weights = published[choose(f"weights of {name}", wanted, published.__members__)]
    view, names = weights.transforms(), tuple(weights.meta["categories"])
    info = ModelInfo(
        arch=arch,
        image_size=image_size or view.crop_size[0],
        outputs=len(names),
        classes=names,
        mean=tuple(view.mean),
        std=tuple(view.std),
        top1=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100,
        val_source="torchvision's statement for ImageNet-1K",
    )
    return checkpoint.model_from_state(_fetch(weights.url, name), info, f"{name}:{wanted}"), info


def _fetch(url: str, name: str) -> Mapping[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:
        # urllib, http, ssl, socket, zip and pickle errors have no common base; each means: no usable file.
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"cannot get the weights of {name} ({reason}): put {url.rsplit('/', 1)[-1]} into {folder}, "
            "or give a checkpoint file with --teacher-arch"
        ) from error


def _check_size(info: ModelInfo, image_size: int | None, origin: str) -> None:
    if image_size is not None and image_size != info.image_size:
        raise UserError(
            f"teacher {origin} works at {info.image_size} px but the images have {image_size} px: "
            f"use --size {info.image_size}, or train a teacher at {image_size} px"
        )


def _keep_rows(model: nn.Module, info: ModelInfo, rows: Sequence[int], classes: Sequence[str] | None) -> ModelInfo:
    rows = list(rows)
    if len(set(rows)) != len(rows) or not rows or min(rows) < 0 or max(rows) >= info.outputs:
        raise UserError(
            f"cannot keep rows {rows[:5]} ... of {info.outputs} outputs: give distinct rows below that number"
        )
    if classes is not None and len(classes) != len(rows):
        raise UserError(
            f"{len(rows)} rows of the teacher were chosen for {len(classes)} classes: give one row per class"
        )
    _, layer = classifier_layer(model)
    layer.weight = nn.Parameter(layer.weight.detach()[rows].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
    if isinstance(layer, nn.Linear):
        layer.out_features = len(rows)
    else:
        layer.out_channels = len(rows)
    names = tuple(classes) if classes is not None else tuple(info.classes[row] for row in rows if info.classes)
    return dataclasses.replace(info, outputs=len(rows), classes=names)
