"""What the methods that draw from a diffusion prior share: its checks against the job, and images out of latents."""

import dataclasses
from collections.abc import Sequence

import torch

from raydd.distill.assemble import stored_logits
from raydd.distill.encode import encode, resize, resolve_codec
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.models.prior.base import Prior
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.store.distilled import DistilledImage


def open_prior(job: Job, device: str, guidance_channels: str = "all") -> Prior:
    """The job's prior, opened once per process."""
    return dataclasses.replace(job.prior, guidance_channels=guidance_channels).load(device)


def check_prior(name: str, job: Job, guidance: float, *, chooses_class: bool) -> Prior:
    """The job's prior on the CPU; `UserError` if method `name` cannot use it.

    `chooses_class`: whether the prior alone must decide the class of an image.
    """
    if job.ipc < 1:
        raise UserError(f"--ipc {job.ipc}: must be at least 1 image per class; try --ipc 10")
    if job.prior is None:
        raise UserError(f"{name} needs a prior: add --prior DIR, or train one with 'raydd train-prior'")
    prior = open_prior(job, "cpu")
    if job.size > prior.image_size:
        raise UserError(
            f"--size {job.size} is more than the prior's {prior.image_size} px: use --size {prior.image_size} or less, "
            "or a larger prior"
        )
    if chooses_class and prior.num_classes is None:
        raise UserError(
            f"the prior {job.prior.name} is unconditional and cannot choose a class: use dsco with --start real, or a "
            "class-conditional prior"
        )
    if guidance != 1 and not prior.guidable:
        raise UserError(f"the prior {job.prior.name} has no null label: use --guidance 1")
    return prior


def to_images(
    prior: Prior, latents: torch.Tensor, job: Job, output: OutputConfig, teacher: Teacher | None
) -> list[DistilledImage]:
    """Latents fp32 [n,Ch,H,W] decoded, resized to the job's size and encoded; `teacher` makes stored labels."""
    pixels = torch.cat([resize(prior.decode(part).cpu(), job.size) for part in latents.split(job.batch)])
    return from_pixels(pixels, [()] * len(pixels), job, output, teacher)


def from_pixels(
    pixels: torch.Tensor,
    source_keys: Sequence[tuple[str, ...]],
    job: Job,
    output: OutputConfig,
    teacher: Teacher | None,
) -> list[DistilledImage]:
    """Synthetic images uint8 [n,3,size,size] encoded; `source_keys` name what each started from."""
    codec = resolve_codec(output.codec, job.size)
    return [
        DistilledImage(
            data=encode(image, codec),
            origin="synthetic",
            source_keys=keys,
            soft_label=stored_logits(teacher, image[None], job.size),
        )
        for image, keys in zip(pixels, source_keys, strict=True)
    ]
