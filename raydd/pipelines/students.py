"""One student as a unit of work: open the set, its labels and the validation images, train, write the result.

Many small students run side by side, one per worker; a large one runs as one process group over several workers
(`raydd.runtime.ray_ddp`). Either way the result is one small JSON file, which is also the proof that it is done.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import safetensors.torch
import torch

from raydd.config import content_hash, to_plain
from raydd.data.decode import decode_image
from raydd.data.source import open_validation
from raydd.data.tensors import ImageSet, load_images
from raydd.evaluate.labels import make_labels
from raydd.evaluate.protocols import resolve
from raydd.evaluate.record import FULL, file_name
from raydd.evaluate.views import open_views
from raydd.models.normalization import Normalization
from raydd.pipelines.job import opened
from raydd.pipelines.labels import LabelSource
from raydd.runtime.work import Context
from raydd.store import distilled, events, filesystem
from raydd.store.plain import load_tensors, read_json
from raydd.store.progress import start_unit
from raydd.store.run import Run
from raydd.train.protocol import Protocol
from raydd.train.sets import TrainSet, ValSet
from raydd.train.snapshot import Snapshots
from raydd.train.student import StudentResult, train_student

SNAPSHOT_S = 60.0


@dataclasses.dataclass(frozen=True)
class StudentUnit:
    """Train one student on one run's set under one protocol and seed."""

    run_uri: str
    val: str
    protocol: Protocol
    student: str
    seed: int
    labels: LabelSource
    revision: int
    val_fingerprint: str
    # Of stored views: the seed they were made with, and a hash of what they are.
    label_seed: int | None = None
    views: str | None = None

    @property
    def name(self) -> str:
        return f"{self.run_uri}/{self.slug}"

    @property
    def slug(self) -> str:
        name = file_name(self.protocol.name, self.student, self.labels.form)
        return f"{name.removesuffix('.json')}-{self.seed}"

    @property
    def cost(self) -> float:
        return float(self.protocol.epochs * distilled.read_manifest(Run(self.run_uri)).get("ipc", 1))

    @property
    def identity(self) -> str:
        """What the result depends on; a result of another identity is stale and made again."""
        labels = [self.labels.form, self.labels.teacher_hash, self.label_seed, self.views]
        return content_hash([self.protocol.hash, self.student, self.seed, labels, self.revision, self.val_fingerprint])

    @property
    def uri(self) -> str:
        return Run(self.run_uri).path("evaluation", "seeds", f"{self.slug}.json")

    def is_done(self) -> bool:
        return filesystem.exists(self.uri) and self.read()["identity"] == self.identity

    def read(self) -> dict[str, Any]:
        return read_json(self.uri)

    def run(self, context: Context) -> None:
        self.commit(self.train(context.device))

    def train(self, device: str, rank: int = 0, world: int = 1) -> StudentResult:
        """Train and test; with `world` > 1 as one rank of an initialized process group."""
        run = Run(self.run_uri)
        if rank == 0:
            start_unit(run, self.slug)
        manifest = distilled.read_manifest(run)
        train, steps = load_training(run, manifest, self.protocol)
        mean, std = (tuple(manifest["normalization"][name]) for name in ("mean", "std"))
        normalization = Normalization(mean, std)
        return train_student(
            train,
            load_validation(self.val, manifest["size"], self.protocol.test_resize),
            self.protocol,
            self.student,
            self.seed,
            num_classes=len(manifest["classes"]),
            normalization=normalization,
            labels=self._labels(run, train, manifest, normalization, device),
            device=device,
            steps=steps,
            state=snapshots_at(self._snapshot_uri(run)),
            rank=rank,
            world=world,
        )

    def commit(self, result: StudentResult) -> None:
        run = Run(self.run_uri)
        record = {"identity": self.identity, "seed": self.seed, **to_plain(result)}
        filesystem.write_atomic(self.uri, json.dumps(record, indent=1).encode())
        filesystem.remove_tree(self._snapshot_uri(run))
        events.append(run, "student_trained", name=self.slug, last=round(result.last, 5), seconds=round(result.seconds))

    def _labels(self, run: Run, train: TrainSet, manifest: dict, normalization: Normalization, device: str):
        if self.labels.form == "views":
            return open_views(
                run.path("distilled", "views"),
                train,
                self.protocol,
                normalization=normalization,
                teacher_hash=self.labels.teacher_hash,
                seed=self.label_seed,
            )
        return open_labels(self.labels, train, manifest, normalization, device)

    def _snapshot_uri(self, run: Run) -> str:
        return run.path("state", f"student-{self.slug}.safetensors")


def open_labels(labels: LabelSource, train: TrainSet, manifest: dict, normalization: Normalization, device: str):
    """The label form of a training on the set of `manifest`; every form but stored views."""
    return make_labels(
        labels.form,
        train,
        num_classes=len(manifest["classes"]),
        teacher=labels.spec.load(device) if labels.spec else None,
        normalization=normalization,
        device=device,
    )


def snapshots_at(uri: str) -> Snapshots:
    """Snapshots of one training in one file."""

    def load() -> dict[str, torch.Tensor] | None:
        return load_tensors(filesystem.read_bytes(uri), uri) if filesystem.exists(uri) else None

    def save(tensors: dict[str, torch.Tensor]) -> None:
        filesystem.write_atomic(uri, safetensors.torch.save(tensors))

    return Snapshots(load, save, SNAPSHOT_S)


def resolve_protocol(name: str, manifest: dict[str, Any], student: str, *, flip: bool, precision: str) -> Protocol:
    """A named recipe for a run's set. The ceiling `full` takes the recipe of the IPC that it is held against."""
    classes = len(manifest["classes"])
    count = classes * manifest["ipc"] if manifest["method"] == FULL else manifest["images"]
    protocol = resolve(
        name,
        num_classes=classes,
        ipc=manifest["ipc"],
        n_images=count,
        image_size=manifest["size"],
        factor=manifest["factor"],
        arch=student,
        precision=precision,
    )
    if flip:
        return protocol
    augmentation = dataclasses.replace(protocol.augmentation, flip=False)
    return dataclasses.replace(protocol, augmentation=augmentation)


def load_training(run: Run, manifest: dict[str, Any], protocol: Protocol) -> tuple[TrainSet, int | None]:
    """The training set of a run, and the steps to train it for (None: the protocol's own).

    `full` trains the whole source for exactly the steps of a distilled set of the same IPC.
    """
    if manifest["method"] == FULL:
        images = _source_images(manifest["source"]["uri"], manifest["size"])
        steps = protocol.steps(len(manifest["classes"]) * manifest["ipc"])
        return TrainSet(images.images, images.labels, list(images.keys)), steps
    pixels, labels, keys, soft, whole = [], [], [], [], []
    for label in range(len(manifest["classes"])):
        for i, image in enumerate(distilled.read_class(run, label)):
            # Originals of a doped set keep their own bytes and sizes; what was distilled has the size already.
            pixels.append(decode_image(image.data, manifest["size"]))
            labels.append(label)
            keys.append(f"{label:06d}/{i:06d}")
            soft.append(image.soft_label)
            whole.append(image.origin == "real")
    logits = None
    # A doped set may hold stored labels of its distilled images only: of no use to a training on all.
    if soft and None not in soft:
        logits = torch.tensor(soft, dtype=torch.float32).view(len(soft), -1, len(manifest["classes"]))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    mixed = manifest["factor"] > 1 and any(whole)
    originals = torch.tensor(whole) if mixed else None
    return TrainSet(images, torch.tensor(labels), keys, manifest["factor"], logits, originals), None


@functools.lru_cache(maxsize=1)
def _source_images(uri: str, size: int) -> ImageSet:
    return load_images(opened(uri, "train"), size)


@functools.lru_cache(maxsize=2)
def load_validation(uri: str, size: int, resize: int) -> ValSet:
    """Validation images under a protocol's test transform, decoded once per process."""
    images = load_images(open_validation(uri), size, resize=resize)
    return ValSet(images.images, images.labels, list(images.keys))
