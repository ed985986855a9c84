"""What noise optimization and plain samples of a prior will do, counted (dsco.md, sections 11 and 12).

Per class of K images in chunks: `steps` denoiser calls per batch of a chunk, twice the rows with guidance; at every
step that injects noise M noised real images through each feature net, K forwards before and K after, and K forwards
and backwards for every iteration. The classes of a pack share their calls, and a pack is computed whole.
"""

import functools
import math
from collections.abc import Sequence

import torch

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import num_features
from raydd.distill.dsco.loop import chunks
from raydd.distill.dsco.nopt import thinned
from raydd.models.prior.base import Prediction, Prior, Schedule
from raydd.models.prior.step import posterior
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.job import Job
from raydd.pipelines.plan.cost import Amount, Counting, Op, Work, add, batches, times
from raydd.pipelines.prior_samples import PriorSamples
from raydd.pipelines.synthetic import open_prior

# What `synthesize` and `template_statistics` give the denoiser at once, unless told otherwise.
SAMPLES, TEMPLATES = 256, 64


def prior_op(job: Job, kind: str) -> Op:
    """A pass of the job's prior."""
    return Op(kind, f"prior {job.prior_hash}")


def denoising(job: Job, images: int, steps: int, guidance: float, batch: int) -> Work:
    """`images` through `steps` steps, `batch` at a time; guidance doubles the rows, not the calls."""
    rows = images * steps * (1 if guidance == 1 else 2)
    return {prior_op(job, "denoise"): Amount(batches(images, batch) * steps, rows)}


def painting(job: Job, images: int) -> Work:
    """Latents to images, at the end."""
    return {prior_op(job, "paint"): Amount(batches(images, job.batch), images)}


def count_samples(method: PriorSamples, job: Job, device: str) -> Counting:
    """Plain samples, the control."""
    config = method.config
    steps = len(open_prior(job, "cpu").schedule(config.steps))
    one = add([denoising(job, job.ipc, steps, config.guidance, job.batch), painting(job, job.ipc)])
    notes = (f"denoiser forwards per class: {_formula(job.ipc, steps, config.guidance)}",)
    return Counting(lambda images: {}, lambda labels: times(one, len(labels)), notes=notes)


def count_dsco(method: Dsco, job: Job, device: str) -> Counting:
    """Noise optimization, with the source's latents or with statistics of the prior's own samples."""
    prior = open_prior(job, "cpu")
    config = method.nopt.at(prior.latent_shape)
    schedule, counts = prior.schedule(config.steps), job.source.counts()
    first = first_step(config, len(schedule))
    optimized = sum(injects(prior, schedule, i, config) for i in range(1, first + 1))

    sizes = chunks(job.ipc, config.chunk)

    @functools.cache
    def one(images: int) -> Work:
        """What every class of a pack has done by itself."""
        works = [painting(job, job.ipc)]
        if config.access == "free":
            works.append(_templates(prior, job, config, len(schedule)))
        else:
            works += [times(_targets(prior, config, count, images), optimized) for count in sizes]
        return add(works)

    @functools.cache
    def together(classes: int) -> Work:
        works = [denoising(job, count * classes, first + 1, config.guidance, SAMPLES) for count in sizes]
        works += [times(_optimizing(prior, config, count * classes), optimized) for count in sizes]
        return add(works)

    def pack(labels: tuple[int, ...]) -> Work:
        own = [one(counts[label] if method.reads_source else 0) for label in labels]
        return add([*own, together(len(labels))])

    def shard(images: int) -> Work:
        calls = batches(images, job.batch)
        return {prior_op(job, "encode"): Amount(calls, calls * job.batch)}

    return Counting(shard, pack, notes=_notes(job, config, first + 1, optimized))


def first_step(config: DscoConfig, steps: int) -> int:
    """The step that sampling starts with: the last level, or that of noised real images."""
    if config.start != "real":
        return steps - 1
    return min(steps - 1, max(1, round(config.real_level * steps) - 1))


def injects(prior: Prior, schedule: Schedule, i: int, config: DscoConfig) -> bool:
    """Whether step i leaves noise to optimize, as the fixed variance has it."""
    zero = torch.zeros(1, *prior.latent_shape)
    return float(posterior(Prediction(zero, zero), schedule, i, config.eta)[1]) > 0


def target_rows(config: DscoConfig, count: int, images: int) -> int:
    """Noised copies of `images` real images that a step's targets are made of, for `count` samples."""
    kept, rounds = thinned(torch.empty(images, 0), count, config, ("plan",))
    if config.bins == "exact":
        return rounds * len(kept)
    rounds = max(rounds, batches(count, len(kept)))
    return batches(rounds * len(kept), count) * count


def net_of(prior: Prior, config: DscoConfig) -> str:
    """What the seconds of the feature net depend on."""
    return f"latents {'x'.join(map(str, prior.latent_shape))} {config.feature_precision}"


def net_shape(prior: Prior, config: DscoConfig) -> int:
    """Channels of what source-free optimization matches: of the feature net's maps, or every number of a latent."""
    return math.prod(prior.latent_shape) if config.features == "latent" else num_features(*prior.latent_shape[1:])


def _targets(prior: Prior, config: DscoConfig, count: int, images: int) -> Work:
    """What a chunk of `count` samples is matched to at one step, for a class of `images`."""
    nets = config.num_extractors
    return {Op("target", net_of(prior, config)): Amount(nets, nets * target_rows(config, count, images))}


def _optimizing(prior: Prior, config: DscoConfig, count: int) -> Work:
    """One step of `count` samples, of all classes of a pack."""
    of, more = net_of(prior, config), config.iterations
    if config.access == "free":
        # Raw latents go through no net; the loss before and after is computed with its gradient.
        kind = Op("nopt_free", of if config.features == "maps" else f"raw {of}")
        return {kind: Amount(more + 2, (more + 2) * count)}
    nets = config.num_extractors
    return {
        Op("feature", of): Amount(2 * nets, 2 * nets * count),
        Op("nopt", of): Amount(more * nets, more * nets * count),
    }


def _templates(prior: Prior, job: Job, config: DscoConfig, steps: int) -> Work:
    """Statistics of plain samples of a class; the step into the clean level is left out."""
    work = dict(denoising(job, config.templates, steps - 1, config.guidance, TEMPLATES))
    if config.features == "maps":
        calls = batches(config.templates, TEMPLATES) * (steps - 1)
        work[Op("map", net_of(prior, config))] = Amount(calls, config.templates * (steps - 1))
    return work


def _formula(images: int, steps: int, guidance: float) -> str:
    return f"{images} images x {steps} steps" + ("" if guidance == 1 else " x 2 for guidance")


def _notes(job: Job, config: DscoConfig, steps: int, optimized: int) -> tuple[str, ...]:
    sizes: Sequence[int] = chunks(job.ipc, config.chunk)
    parts = f", in {len(sizes)} chunks" if len(sizes) > 1 else ""
    notes = [f"denoiser forwards per class: {_formula(job.ipc, steps, config.guidance)}{parts}"]
    most = " at most" if config.stop == "plateau" else ""
    notes.append(f"noise is optimized at {optimized} steps, {config.iterations} iterations each{most}")
    return tuple(notes)
