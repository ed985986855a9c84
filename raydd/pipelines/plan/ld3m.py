"""What an optimization through a prior's sampling chain will do, counted (ld3m.md, sections 5 and 12).

Per image and iteration T steps, twice the rows with guidance: one forward for the loss, another where activations were
not kept (`graph` two makes one more), and one backward: N x iterations x (2 + 1) x g T denoiser passes, less what the
kept steps save. Beside the iterations: step sizes measured once per worker, held-out losses at eleven moments, images
exported twice, and two tiny calls that tell how much memory a step keeps.
"""

import functools

import torch

from raydd.distill.ld3m import loop, rates
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PriorGenerator
from raydd.distill.ld3m.memory import settle_steps
from raydd.keyed import hash64
from raydd.pipelines.job import Job
from raydd.pipelines.ld3m import Ld3m
from raydd.pipelines.ld3m_start import SPARES
from raydd.pipelines.ld3m_work import matcher_of, packs
from raydd.pipelines.plan.cost import Amount, Counting, Op, Work, add, batches, reading, times
from raydd.pipelines.plan.dsco import prior_op
from raydd.pipelines.synthetic import open_prior


def kept_steps(method: Ld3m, job: Job, device: str | None) -> int:
    """Steps whose activations are kept: as given, else what fits the memory of `device`; None stands for none."""
    learn = method.learn
    if learn.generator == "pixels" or not learn.steps:
        return 0
    if learn.keep_steps is not None:
        return min(learn.steps, learn.keep_steps)
    if device is None:
        return 0
    generator = PriorGenerator(open_prior(job, device), learn, job.size)
    c = None if generator.prior.num_classes is None else generator.conditions(torch.tensor([0]))
    return settle_steps(generator, c, job.ipc * len(packs(learn, job)[0]))


def count_ld3m(method: Ld3m, job: Job, device: str, kept: int = 0) -> Counting:
    """All of LD3M: its chain, its matching, its start and its exports; `kept` steps keep their activations."""
    learn, counts = method.learn, job.source.counts()
    chain = Chain(job, learn, kept)
    matching = Matching(job, learn)

    @functools.cache
    def one(sizes: tuple[int, ...]) -> Work:
        images = job.ipc * len(sizes)
        held = 1 + min(loop.EVALUATIONS, learn.iterations) if learn.heldout else 0
        works = [
            chain.start(images),
            times(chain.gradients(images), learn.iterations),
            times(chain.forward(images), held + 2),
            matching.descent(sizes, held),
        ]
        return add(works)

    def pack(labels: tuple[int, ...]) -> Work:
        return add([one(tuple(counts[label] for label in labels)), _reads(job, learn, labels)])

    once = _once(job, learn, chain, matching)
    return Counting(lambda images: {}, pack, once=once, notes=_notes(chain, learn))


class Chain:
    """Passes of the prior for images that are optimized together."""

    def __init__(self, job: Job, learn: Ld3mConfig, kept: int):
        self.job, self.learn, self.kept = job, learn, kept
        self.prior = self.passes = None
        if learn.generator == "prior":
            self.prior = open_prior(job, "cpu")
            self.passes = 1 if PriorGenerator(self.prior, learn, job.size).guidance == 1 else 2

    def start(self, images: int) -> Work:
        """Start images encoded, and the calls that tell what a step and the decoder keep."""
        if self.prior is None:
            return {}
        encoded = min(images, self.job.ipc) if self.learn.init == "gaussian" else images
        calls = 1 if self.learn.init == "gaussian" else batches(images, self.learn.chunk)
        found = [{prior_op(self.job, "encode"): Amount(calls, encoded), prior_op(self.job, "paint"): Amount(2, 3)}]
        if self.learn.steps:
            found.append({prior_op(self.job, "denoise"): Amount(2, 3 * self.passes)})
        return add(found)

    def forward(self, images: int) -> Work:
        """Images out of latents, without gradients."""
        return add([self._denoise(images, self.learn.steps), self._paint(images, 1)])

    def gradients(self, images: int) -> Work:
        """One iteration: forward, again for what was not kept, and backward."""
        if self.prior is None:
            return {}
        steps, two = self.learn.steps, self.learn.graph == "two"
        # Pixels come out of a pixel-space prior as they are: there is nothing to compute again.
        again = 0 if self.prior.latent_shape[1] == self.prior.image_size else 1
        return add(
            [
                self._denoise(images, steps * (1 + two) + steps - self.kept),
                self._denoise(images, steps, "denoise_back"),
                self._paint(images, 1 + two + again),
                self._paint(images, 1, "paint_back"),
            ]
        )

    def _denoise(self, images: int, steps: int, kind: str = "denoise") -> Work:
        if self.prior is None or not steps:
            return {}
        calls = batches(images, self.learn.chunk) * steps
        return {prior_op(self.job, kind): Amount(calls, images * steps * self.passes)}

    def _paint(self, images: int, count: int, kind: str = "paint") -> Work:
        if self.prior is None:
            return {}
        chunk = min(self.learn.chunk, images)
        full, rest = divmod(images, chunk)
        part = self.learn.decode_chunk or chunk
        calls = full * batches(chunk, part) + batches(rest, part)
        return {prior_op(self.job, kind): Amount(calls * count, images * count)}


class Matching:
    """Passes of the matching network, or of the student along expert trajectories."""

    def __init__(self, job: Job, learn: Ld3mConfig):
        self.job, self.learn = job, learn
        self.of = f"{matcher_of(learn, job.size)} at {job.size} px, {learn.loss}"

    def descent(self, sizes: tuple[int, ...], held: int) -> Work:
        """All iterations and `held` evaluations of held-out losses, for classes of these sizes."""
        learn = self.learn
        found = [self.iterations(sizes, learn.iterations)]
        if learn.loss == "mtt":
            return add([*found, self._student("student_held", sizes, held * learn.heldout)])
        images, triples = self.job.ipc * len(sizes), learn.heldout
        found.append({self._op("match_net"): Amount(held * triples, held * triples)})
        if learn.loss == "dm":
            # The real side of a held-out draw is kept from the first evaluation on.
            found.append(self._real(sizes, triples if held else 0))
            calls = held * triples * len(sizes)
            found.append({self._op("match_held"): Amount(calls, held * triples * images)})
        else:
            rows = images + sum(min(size, learn.real_batch) for size in sizes)
            found.append({self._op("match_held"): Amount(held * triples * len(sizes), held * triples * rows)})
        return add(found)

    def iterations(self, sizes: tuple[int, ...], count: int) -> Work:
        """`count` iterations in a row."""
        learn, images = self.learn, self.job.ipc * len(sizes)
        if learn.loss == "mtt":
            return self._student("student", sizes, count)
        rows = images
        found = [{self._op("match_net"): Amount(count, count)}]
        if learn.loss == "dm":
            found.append(self._real(sizes, count if learn.pool is None else min(count, learn.pool)))
        else:
            rows += sum(min(size, learn.real_batch) for size in sizes)
        found.append({self._op("match"): Amount(count * len(sizes), count * rows)})
        return add(found)

    def _real(self, sizes: tuple[int, ...], draws: int) -> Work:
        rows = sum(min(size, self.learn.real_batch) for size in sizes)
        return {self._op("match_real"): Amount(draws * len(sizes), draws * rows)}

    def _student(self, kind: str, sizes: tuple[int, ...], matches: int) -> Work:
        images = self.job.ipc * len(sizes)
        batch = min(images, self.learn.student_batch or images)
        # Every so many steps all images are seen, the last of them in a smaller batch.
        rounds, more = divmod(self.learn.student_steps, batches(images, batch))
        rows = rounds * images + more * batch
        return {self._op(kind): Amount(matches * self.learn.student_steps, matches * rows)}

    def _op(self, kind: str) -> Op:
        return Op(kind, self.of)


def _reads(job: Job, learn: Ld3mConfig, labels: tuple[int, ...]) -> Work:
    """Whole classes for the matcher, and the images to start from."""
    counts = job.source.counts()
    found = []
    if learn.loss != "mtt":
        found.append({reading(job.size): Amount(len(labels), sum(counts[label] for label in labels))})
    starting = {"real": labels, "gaussian": labels[:1]}.get(learn.init, ())
    if starting:
        size = job.size if learn.generator == "pixels" else open_prior(job, "cpu").image_size
        rows = sum(min(counts[label], job.ipc + SPARES) for label in starting)
        found.append({reading(size): Amount(len(starting), rows)})
    return add(found)


def _once(job: Job, learn: Ld3mConfig, chain: Chain, matching: Matching) -> Work:
    """Step sizes that are not given, measured on one pack of the run by every worker that finds none."""
    learns = learn.learns[0], learn.learns[1] and chain.prior.num_classes is not None
    needed = any(rate is None for rate, on in zip((learn.lr_latent, learn.lr_cond), learns) if on)
    if not needed or not learn.iterations or learn.optimizer != "sgd":
        return {}
    all_packs = packs(learn, job)
    measured = min(all_packs, key=lambda pack: hash64(job.seed, "rates", pack))
    counts = job.source.counts()
    sizes = tuple(counts[label] for label in measured)
    images = job.ipc * len(sizes)
    found = [times(chain.gradients(images), rates.ITERATIONS), matching.iterations(sizes, rates.ITERATIONS)]
    if len(all_packs) > 1:
        # Another pack than the worker's own has to be prepared for it.
        found += [chain.start(images), _reads(job, learn, measured)]
    return add(found)


def _notes(chain: Chain, learn: Ld3mConfig) -> tuple[str, ...]:
    if chain.prior is None or not learn.steps:
        return ()
    forwards = 2 + (learn.graph == "two")
    formula = f"{forwards} forwards and 1 backward x {learn.steps} steps" + (" x 2 for guidance" * (chain.passes == 2))
    kept = f"; {chain.kept} steps keep their activations and save the second forward" if chain.kept else ""
    return (f"denoiser per image and iteration: {formula}{kept}",)
