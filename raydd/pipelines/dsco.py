"""DsCo's first half from source to distilled set: latents of the real images, then noise optimization class by class.

Stages: the source's latents in one Ray Data pass (`RUN/latents`), then each class, or pack of classes, as a unit that
saves its half-done state between sampling steps. Source-free optimization reads no images: the source gives nothing
but class names.
"""

import dataclasses
import functools
from typing import Any

import torch

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.datafree import Templates, synthesize_free, template_statistics
from raydd.distill.dsco.loop import State, Task, chunks
from raydd.distill.dsco.nopt import synthesize
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.models.prior.base import Prior
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.score import Scoring
from raydd.pipelines.synthetic import check_prior, open_prior, to_images
from raydd.runtime.checkpoints import UnitWork
from raydd.score.latents import LatentEncoder, read_latents
from raydd.store import events, scores
from raydd.store.distilled import DistilledImage
from raydd.store.run import LATENTS, Run

# Names of a class's source-free statistics in a unit's state.
TEMPLATES = ("templates-mean-{}", "templates-std-{}")


@dataclasses.dataclass(frozen=True)
class Dsco:
    """The method for `pipelines.distill`."""

    name: str
    nopt: DscoConfig
    output: OutputConfig = OutputConfig()

    @property
    def config(self) -> dict[str, Any]:
        return {"nopt": self.nopt, "output": self.output}

    @property
    def reads_source(self) -> bool:
        """Whether the source's images are looked at."""
        return self.nopt.access == "source"

    def factor(self, size: int) -> int:
        return 1

    def check(self, job: Job) -> None:
        """Raise `UserError` for switches that do not fit the job."""
        self.nopt.check()
        check_prior(self.name, job, self.nopt.guidance, chooses_class=self.nopt.start != "real")
        self._warn(job)

    def _warn(self, job: Job) -> None:
        if self.nopt.access == "free" and self.nopt.optimizer == "shell":
            print("warning: --optimizer shell without the source takes images off their class: use --preset dsco-free")
        name, count = min(job.counts().items(), key=lambda item: item[1])
        if self.reads_source and count < job.ipc:
            print(f"warning: class {name!r} has {count} images, fewer than --ipc {job.ipc}")

    def cost(self, job: Job, label: int) -> float:
        """Passes of the feature net per step (spec section 12): samples back and forth, and noised real images."""
        own = job.ipc * 2 * self.nopt.at(open_prior(job, "cpu").latent_shape).iterations
        if not self.reads_source:
            return float(own)
        rows = self.nopt.rounds * job.source.counts()[label]
        return float(own + min(rows, job.ipc * (self.nopt.rows_per_image or rows)))

    def scoring(self, job: Job) -> Scoring | None:
        """Latents of all images; none where the source's images are not looked at."""
        if not self.reads_source:
            return None
        sample = self.nopt.latent == "sample"
        config = {
            "kind": "latents",
            "source": job.fingerprint,
            "prior": job.prior_hash,
            "batch": job.batch,
            "sample": sample,
            "seed": job.seed if sample else None,
        }
        load = functools.partial(_load_encoder, self, job)
        return Scoring(config, None, load, size=open_prior(job, "cpu").image_size, folder=LATENTS)

    def packs(self, job: Job) -> list[tuple[int, ...]]:
        """All classes of the job, `pack` at a time."""
        return job.packs(self.nopt.pack)

    def build_pack(
        self,
        job: Job,
        labels: tuple[int, ...],
        wanted: tuple[int, ...],
        tables: Run | None,
        teacher: Teacher | None,
        work: UnitWork,
    ) -> list[list[DistilledImage]]:
        """The `ipc` synthetic images of each class, chunk by chunk; a worker that was lost is resumed between steps.

        All of a pack is computed, whatever is wanted, because the shape of a batch decides its last bits; a class
        that is not wanted may have no image or break down.
        """
        prior = open_prior(job, work.device, self.nopt.guidance_channels)
        reals = _read_reals(job, labels, wanted, tables, prior) if self.reads_source else dict.fromkeys(labels)
        latents = Chunks(self, job, prior, reals, wanted, work).run()
        return [to_images(prior, latents[i], job, self.output, teacher) if i in latents else [] for i in labels]


def _read_reals(
    job: Job, labels: tuple[int, ...], wanted: tuple[int, ...], tables: Run | None, prior: Prior
) -> dict[int, torch.Tensor]:
    """Latents of the classes that have readable images. Raises `UserError` for a wanted class without one."""
    found = {}
    for label in labels:
        table = scores.read_label(tables, label)
        if table is not None:
            found[label] = read_latents(table, prior.latent_shape)
        elif label in wanted:
            raise UserError(f"class {job.classes[label]!r} has no readable image: use --access free for it")
    return found


def _load_encoder(method: Dsco, job: Job, device: str) -> LatentEncoder:
    sample = method.nopt.latent == "sample"
    return LatentEncoder(open_prior(job, device), sample=sample, seed=job.seed, batch=job.batch)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunks of the classes of a pack, in order; finished ones and the half-done one are kept in the unit's state.

    reals: by label, the classes that can be made, with their latents (None where the source is not looked at).
    """

    method: Dsco
    job: Job
    prior: Prior
    reals: dict[int, torch.Tensor | None]
    wanted: tuple[int, ...]
    work: UnitWork

    def run(self) -> dict[int, torch.Tensor]:
        """Latents fp32 [IPC, Ch, H, W] on the CPU, by label."""
        sizes = chunks(self.job.ipc, self.method.nopt.chunk)
        saved, start, first = self.work.load_state(), None, 0
        kept = {} if saved is None else dict(saved.tensors)
        if "x" in kept:
            start, first = State(saved.facts["next_i"], kept.pop("x"), saved.facts["logs"]), saved.facts["chunk"]
        if self.method.nopt.access == "free":
            self._fill_templates(kept)
        for chunk, count in list(enumerate(sizes))[first:]:
            kept[f"chunk-{chunk}"] = self._one(chunk, count, kept, start)
            start = None
        classes = len(self.reals)
        parts = [kept[f"chunk-{chunk}"].unflatten(0, (classes, count)) for chunk, count in enumerate(sizes)]
        return dict(zip(self.reals, torch.cat(parts, 1), strict=True))

    def _fill_templates(self, kept: dict[str, torch.Tensor]) -> None:
        """Add the source-free statistics of the classes that lack them, saving between classes."""
        for done, label in enumerate(self.reals, 1):
            names = [name.format(label) for name in TEMPLATES]
            if names[0] in kept:
                continue
            found = template_statistics(self.prior, self._task(label, 0, 0), self.method.nopt)
            kept |= zip(names, dataclasses.astuple(found))
            if self.work.due():
                self.work.save_state(kept, done)

    def _one(self, chunk: int, count: int, kept: dict[str, torch.Tensor], start: State | None) -> torch.Tensor:
        nopt = self.method.nopt
        # Steps count on from those of the templates.
        before = len(self.reals) if nopt.access == "free" else 0

        def on_step(state: State) -> None:
            if state.next_i >= 0 and self.work.due():
                step = before + (chunk + 1) * nopt.steps - 1 - state.next_i
                facts = {"chunk": chunk, "next_i": state.next_i, "logs": state.logs}
                self.work.save_state(kept | {"x": state.x}, step, facts)

        tasks = [self._task(label, count, chunk) for label in self.reals]
        options = {"start_state": start, "on_step": on_step}
        if nopt.access == "free":
            templates = [Templates(*(kept[name.format(label)] for name in TEMPLATES)) for label in self.reals]
            result = synthesize_free(self.prior, templates, tasks, nopt, **options)
        else:
            result = synthesize(self.prior, list(self.reals.values()), tasks, nopt, **options)
        for task, log in zip(tasks, result.logs):
            if task.wanted:
                events.append(Run(self.job.out), "noise_optimized", name=task.class_name, chunk=chunk, steps=log)
        return result.latents.cpu()

    def _task(self, label: int, count: int, chunk: int) -> Task:
        own = None if self.prior.num_classes is None else label
        return Task(self.job.classes[label], own, count, self.job.seed, chunk, wanted=label in self.wanted)
