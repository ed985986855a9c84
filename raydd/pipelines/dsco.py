"""DsCo's first half from source to distilled set: latents of the real images, then noise optimization class by class.

Stages: the source's latents in one Ray Data pass (`RUN/latents`), then each class as a unit that saves its half-done
state between sampling steps. Source-free optimization reads no images: the source gives nothing but class names.
"""

import dataclasses
import functools
from typing import Any

import torch

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.datafree import Templates, synthesize_free, template_statistics
from raydd.distill.dsco.loop import State, chunks
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

# Names of the source-free statistics in a unit's state.
TEMPLATES = ("templates-mean", "templates-std")


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

    def build(
        self, job: Job, label: int, tables: Run | None, teacher: Teacher | None, work: UnitWork
    ) -> list[DistilledImage]:
        """The `ipc` synthetic images of one class, chunk by chunk; a worker that was lost is resumed between steps."""
        prior = open_prior(job, work.device, self.nopt.guidance_channels)
        reals = None
        if self.reads_source:
            table = scores.read_label(tables, label)
            if table is None:
                raise UserError(f"class {job.classes[label]!r} has no readable image: use --access free for it")
            reals = read_latents(table, prior.latent_shape)
        latents = Chunks(self, job, label, prior, reals, work).run()
        return to_images(prior, latents, job, self.output, teacher)


def _load_encoder(method: Dsco, job: Job, device: str) -> LatentEncoder:
    sample = method.nopt.latent == "sample"
    return LatentEncoder(open_prior(job, device), sample=sample, seed=job.seed, batch=job.batch)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunks of one class, in order; finished ones and the half-done one are kept in the unit's state."""

    method: Dsco
    job: Job
    label: int
    prior: Prior
    reals: torch.Tensor | None
    work: UnitWork

    def run(self) -> torch.Tensor:
        """Latents fp32 [IPC, Ch, H, W] on the CPU."""
        sizes = chunks(self.job.ipc, self.method.nopt.chunk)
        saved = self.work.load_state()
        kept = {} if saved is None else dict(saved.tensors)
        start = None if saved is None else State(saved.facts["next_i"], kept.pop("x"), saved.facts["log"])
        if self.method.nopt.access == "free" and TEMPLATES[0] not in kept:
            kept |= zip(TEMPLATES, dataclasses.astuple(template_statistics(self.prior, **self._named())))
        for chunk, count in enumerate(sizes):
            if saved is not None and chunk < saved.facts["chunk"]:
                continue
            kept[f"chunk-{chunk}"] = self._one(chunk, count, kept, start)
            start = None
        return torch.cat([kept[f"chunk-{chunk}"] for chunk in range(len(sizes))])

    def _one(self, chunk: int, count: int, kept: dict[str, torch.Tensor], start: State | None) -> torch.Tensor:
        nopt = self.method.nopt

        def on_step(state: State) -> None:
            if state.next_i >= 0 and self.work.due():
                step = (chunk + 1) * nopt.steps - 1 - state.next_i
                facts = {"chunk": chunk, "next_i": state.next_i, "log": state.log}
                self.work.save_state(kept | {"x": state.x}, step, facts)

        options = self._named() | {"ipc": count, "chunk": chunk, "start_state": start, "on_step": on_step}
        if nopt.access == "free":
            templates = Templates(*(kept[name] for name in TEMPLATES))
            result = synthesize_free(self.prior, templates, **options)
        else:
            result = synthesize(self.prior, self.reals, **options)
        name = self.job.classes[self.label]
        events.append(Run(self.job.out), "noise_optimized", name=name, chunk=chunk, steps=result.log)
        return result.latents.cpu()

    def _named(self) -> dict[str, Any]:
        """What every call on this class is told."""
        label = None if self.prior.num_classes is None else self.label
        return {
            "class_name": self.job.classes[self.label],
            "label": label,
            "config": self.method.nopt,
            "seed": self.job.seed,
        }
