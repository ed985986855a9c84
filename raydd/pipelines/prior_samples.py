"""The control `prior`: plain samples of a diffusion prior, as DsCo draws them but without optimizing any noise."""

import dataclasses

import torch

from raydd.config import check_choices
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.models.prior.step import sample
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.synthetic import check_prior, open_prior, to_images
from raydd.runtime.checkpoints import UnitWork
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(OutputConfig):
    """How the prior is sampled; the defaults are DsCo's."""

    # Sampling steps.
    steps: int = 50
    # Classifier-free guidance scale; 1 skips the null pass.
    guidance: float = 4.0
    # Channels that guidance acts on.
    guidance_channels: str = "all"
    # Noise that a step injects, as a share of the ancestral sampler's; 0 is deterministic.
    eta: float = 1.0

    def check(self) -> None:
        """Raise `UserError` for an unknown switch or a value out of range."""
        check_choices(self)
        if self.steps < 1 or self.guidance < 0 or not 0 <= self.eta <= 1:
            raise UserError(
                f"--steps {self.steps}, --guidance {self.guidance:g}, --eta {self.eta:g}: steps must be at least 1, "
                "guidance at least 0, eta 0 to 1"
            )


@dataclasses.dataclass(frozen=True)
class PriorSamples:
    """A method for `pipelines.distill`."""

    name: str
    config: PriorConfig

    @property
    def output(self) -> PriorConfig:
        return self.config

    def factor(self, size: int) -> int:
        return 1

    def check(self, job: Job) -> None:
        """Raise `UserError` for options that do not fit the job."""
        self.config.check()
        check_prior(self.name, job, self.config.guidance, chooses_class=True)

    def cost(self, job: Job, label: int) -> float:
        return float(job.ipc)

    def scoring(self, job: Job) -> None:
        """No image of the source is looked at."""
        return None

    def build(
        self, job: Job, label: int, tables: Run | None, teacher: Teacher | None, work: UnitWork
    ) -> list[DistilledImage]:
        """`ipc` samples of one class, each drawn by (seed, class, index)."""
        prior = open_prior(job, work.device, self.config.guidance_channels)
        latents = sample(
            prior,
            torch.full((job.ipc,), label),
            [(job.seed, job.classes[label], index) for index in range(job.ipc)],
            steps=self.config.steps,
            guidance=self.config.guidance,
            eta=self.config.eta,
            batch=job.batch,
        )
        return to_images(prior, latents, job, self.config, teacher)
