"""The doping model: one student trained on a distilled set, whose doubts find originals to add (dsco.md, section 5).

It is trained exactly as `raydd evaluate` would train a student of that protocol, last step, and kept as a checkpoint
under a name made of everything it depends on, so that a second fraction, cut from the same scores, trains nothing.
Ours: it is tested once, on the set that it was trained on (`fit` in dataset.json), because the source may have no
validation part and nothing leans on the figure.
"""

import dataclasses
from typing import Any

from torch import nn

from raydd.config import content_hash
from raydd.models.checkpoint import INFO, WEIGHTS, ModelInfo, has_checkpoint, read_info, save_checkpoint
from raydd.models.normalization import Normalization
from raydd.models.registry import effective_norm
from raydd.models.teacher import Teacher, load_teacher
from raydd.pipelines.labels import LabelSource
from raydd.pipelines.students import load_training, open_labels, snapshots_at
from raydd.runtime.work import Context
from raydd.store import distilled, filesystem
from raydd.store.run import Run
from raydd.train.protocol import Protocol
from raydd.train.sets import ValSet
from raydd.train.student import train_student

NAME = "model"


@dataclasses.dataclass(frozen=True)
class DopingModel:
    """Train one student on the set of `base`, and keep its weights below `folder`; a unit of work.

    `images` is a hash of the set's content.
    """

    folder: str
    base: str
    images: str
    protocol: Protocol
    student: str
    seed: int
    labels: LabelSource

    cost = 1.0

    @property
    def name(self) -> str:
        return f"{self.student} on {self.base}"

    @property
    def identity(self) -> str:
        """What the weights depend on."""
        labels = [self.labels.form, self.labels.teacher_hash]
        return content_hash([self.protocol.hash, self.student, self.seed, labels, self.images])

    @property
    def directory(self) -> str:
        return filesystem.join(self.folder, f"doping-{self.identity}")

    def facts(self) -> dict[str, Any]:
        """What dataset.json says of a model that is there."""
        info = read_info(filesystem.join(self.directory, NAME + INFO))
        recipe = {"student": self.student, "protocol": self.protocol.name, "seed": self.seed}
        return {**recipe, "labels": self.labels.form, "weights": info.weights, "fit": info.top1}

    def is_done(self) -> bool:
        return has_checkpoint(self.directory, NAME)

    def forget(self) -> None:
        """Remove the model."""
        filesystem.remove_tree(self.directory)

    def load(self, device: str = "cpu") -> Teacher:
        """The trained model, in evaluation mode."""
        return load_teacher(filesystem.join(self.directory, NAME + WEIGHTS), device=device)

    def run(self, context: Context) -> None:
        run = Run(self.base)
        manifest = distilled.read_manifest(run)
        train, steps = load_training(run, manifest, self.protocol)
        normalization = Normalization(*(tuple(manifest["normalization"][name]) for name in ("mean", "std")))
        snapshot = filesystem.join(self.directory, "resume.safetensors")
        kept: list[nn.Module] = []
        result = train_student(
            train,
            ValSet(train.images, train.labels),
            dataclasses.replace(self.protocol, checks=(1.0,)),
            self.student,
            self.seed,
            num_classes=len(manifest["classes"]),
            normalization=normalization,
            labels=open_labels(self.labels, train, manifest, normalization, context.device),
            device=context.device,
            steps=steps,
            state=snapshots_at(snapshot),
            keep=kept.append,
        )
        info = ModelInfo(
            arch=self.student,
            image_size=manifest["size"],
            outputs=len(manifest["classes"]),
            classes=tuple(manifest["classes"]),
            norm=effective_norm(self.student, self.protocol.norm),
            mean=normalization.mean,
            std=normalization.std,
            epoch=self.protocol.epochs,
            top1=result.last,
            val_source="the set it was trained on",
            val_count=len(train),
            recipe={"protocol": self.protocol.name, "seed": self.seed, "steps": result.steps},
        )
        save_checkpoint(self.directory, NAME, kept[0], info)
        filesystem.remove_tree(snapshot)
        context.say(f"doping model {self.student}: top-1 {100 * result.last:.1f} % on its own set")
