"""LD3M from source to distilled set: start images, latents and conditions optimized pack by pack, images out.

A pack is a few classes whose images fill a chunk (DM, DC), or all classes at once (MTT, whose student couples them).
No score table is needed: a worker decodes the classes of its pack. What a pack is made of stands in
`ld3m_work.py`, its start in `ld3m_start.py`.
"""

import dataclasses
import math
from typing import Any

import torch

from raydd.distill.candidates import check_counts
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import settled_guidance
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.models.registry import check_fits
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.ld3m_start import start_run
from raydd.pipelines.ld3m_work import PackWork, matcher_of, packs, student_of
from raydd.pipelines.synthetic import check_prior
from raydd.runtime.checkpoints import UnitWork
from raydd.store import distilled, filesystem
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run
from raydd.store.trajectories import open_experts

INITS = ("real", "gaussian")


@dataclasses.dataclass(frozen=True)
class Ld3m:
    """The method for `pipelines.distill`. inputs: hashes of the run that latents start from, and of the experts."""

    name: str
    learn: Ld3mConfig
    output: OutputConfig = OutputConfig()
    inputs: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return {"learn": self.learn, "output": self.output, "inputs": self.inputs}

    def factor(self, size: int) -> int:
        return 1

    def check(self, job: Job) -> None:
        """Raise `UserError` for switches that do not fit the job."""
        self.learn.check()
        # Without real images to start from, a class needs but one to be matched.
        check_counts(job.counts(), job.ipc if self.learn.init == "real" else min(job.ipc, 1), 1)
        if self.learn.generator == "prior":
            self._check_prior(job)
        elif job.prior is not None:
            print("warning: --prior has no effect on --generator pixels")
        if self.learn.init not in INITS:
            self._check_start(job)
        if self.learn.loss == "mtt":
            self._check_experts(job)
        else:
            arch = matcher_of(self.learn, job.size)
            check_fits(arch, num_classes=len(job.classes), image_size=job.size, norm="instance")

    def _check_prior(self, job: Job) -> None:
        guidance = 1 if self.learn.guidance is None else self.learn.guidance
        prior = check_prior(self.name, job, guidance, chooses_class=False)
        if self.learn.steps:
            prior.schedule(self.learn.steps, "leading")
        if prior.num_classes is None and self.learn.learn == "condition":
            raise UserError(
                f"the prior {job.prior.name} is unconditional, there is no condition to learn: use --learn latent"
            )
        if prior.num_classes is not None and self.learn.steps:
            # Raises where the label embedders are not where expected.
            prior.conditions(torch.tensor([0]))
        if prior.num_classes is not None and settled_guidance(prior, self.learn) == 1 and self.learn.guidance is None:
            print(f"warning: the prior {job.prior.name} has no null label: guidance is off")

    def _check_start(self, job: Job) -> None:
        if self.learn.init == job.out:
            raise UserError(f"--init {self.learn.init} is --out itself: give another --out")
        known = distilled.read_manifest(Run(self.learn.init))["counts"]
        for name in job.classes:
            if known.get(name, 0) < job.ipc:
                raise UserError(
                    f"--init {self.learn.init} has {known.get(name, 0)} images of class {name!r}, fewer than "
                    f"--ipc {job.ipc}: use a lower one, or another run of this source"
                )

    def _check_experts(self, job: Job) -> None:
        experts, last = open_experts(self.learn.experts), self.learn.max_start - 1 + self.learn.expert_epochs
        if len(job.classes) > experts.num_classes:
            raise UserError(
                f"the experts in {experts.uri} know {experts.num_classes} classes, the source has {len(job.classes)}, "
                "and --loss mtt trains one student on all: run 'raydd train-experts' without --classes, or give --data "
                "of the experts' classes alone, as SRC#imagenette is"
            )
        experts.check(arch=self.learn.matcher, size=job.size, classes=job.classes, epochs=last)
        experts.check(mean=job.normalization["mean"], std=job.normalization["std"])
        student_of(experts)

    def packs(self, job: Job) -> list[tuple[int, ...]]:
        """The classes that are optimized together."""
        return packs(self.learn, job)

    def chunks(self, job: Job) -> int:
        """Into how many parts the images of a unit can be dealt: 1 without MTT, whose classes alone are one unit."""
        if self.learn.loss != "mtt":
            return 1
        return math.ceil(len(job.classes) * job.ipc / self.learn.chunk)

    def cost(self, job: Job, label: int) -> float:
        """Images through the prior, and real ones through the matcher, in any unit."""
        own = job.ipc * (1 + 4 * self.learn.steps)
        return float(own + min(self.learn.real_batch, job.source.counts()[label]) / 8)

    def scoring(self, job: Job) -> None:
        """Images are decoded by the workers that match them."""
        return None

    def build_pack(
        self,
        job: Job,
        labels: tuple[int, ...],
        wanted: tuple[int, ...],
        tables: Run | None,
        teacher: Teacher | None,
        work: UnitWork,
    ) -> list[list[DistilledImage]]:
        """The `ipc` images of each class; a worker that was lost is resumed between iterations."""
        return PackWork(self.name, self.learn, self.output, job, labels, wanted, work).run(teacher)


def make(name: str, learn: Ld3mConfig, output: OutputConfig) -> Ld3m:
    """The method with what it reads beside the source pinned: a start run's content, and the experts."""
    inputs = []
    if learn.init not in INITS:
        learn = dataclasses.replace(learn, init=filesystem.absolute(learn.init))
        inputs.append(start_run(learn.init))
    if learn.experts is not None:
        inputs.append(open_experts(learn.experts).hash)
        learn = dataclasses.replace(learn, experts=filesystem.absolute(learn.experts))
    return Ld3m(name, learn, output, tuple(inputs))
