"""What InfoUtil and RDED do, counted: games, crops and their scores."""

import torch

from raydd.distill.infoutil.config import InfoUtilConfig
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.job import Job
from raydd.pipelines.plan.cost import Amount, Counting, Op, Work, batches, reading, teacher_op, times
from raydd.score.designs import build_design
from raydd.score.game import default_max_batch


def count_infoutil(method: InfoUtil, job: Job, device: str) -> Counting:
    """InfoUtil and RDED: games, crops and their scores per candidate; then only the chosen images are opened."""
    config, factor = method.config.at(job.size), method.factor(job.size)
    per_image = crops_at_most(config)
    side = job.size if config.crop.score_input != "native" else job.size // factor

    def shard(images: int) -> Work:
        work = {}
        if config.crop.crop_from == "shapley":
            work |= times(_games(job, evaluations(config, job.seed), device), batches(images, job.batch))
        if config.crop.score != "none":
            crops = batches(images * per_image, job.batch)
            work[Op("cut", f"{config.crop.crop_from} at {job.size} px")] = Amount(crops, crops * job.batch)
            work[teacher_op(job, size=side)] = Amount(crops, crops * job.batch)
            if config.crop.score == "gradnorm":
                work[teacher_op(job, "gradnorm", side)] = Amount(crops, crops * job.batch)
        return work

    def pack(labels: tuple[int, ...]) -> Work:
        # An image may give several crops with `pooled`: then fewer are opened.
        chosen = factor**2 * job.ipc * len(labels)
        return {reading(job.size): Amount(len(labels), chosen)}

    notes = []
    if config.crop.crop_from == "shapley":
        notes.append(f"games: {evaluations(config, job.seed)} forwards per image ({config.crop.estimator})")
    if per_image > 1 and config.crop.crop_from in ("shapley", "random_window") and not config.crop.score_all_windows:
        notes.append(f"crops: at most {per_image} per image; equal ones are scored once")
    once: dict[Op, Amount] = {}
    if config.crop.score != "none":
        once[teacher_op(job, size=side)] = Amount(1, 1)
    if config.crop.score == "gradnorm":
        once[teacher_op(job, "gradnorm", side)] = Amount(2, 2)
    return Counting(shard, pack, once, shard_notes=tuple(notes))


def evaluations(config: InfoUtilConfig, seed: int) -> int:
    """Forwards of the teacher in the games of one image."""
    crop = config.crop
    options = {"grid": crop.grid, "pool": crop.window, "evaluations": crop.evaluations, "seed": seed}
    return build_design(crop.estimator, **options).evaluations


def crops_at_most(config: InfoUtilConfig) -> int:
    """Distinct crops of an image that are scored, at most."""
    crop = config.crop
    windows = (crop.grid - crop.window + 1) ** 2
    if crop.crop_from == "full":
        return 1
    if crop.crop_from == "random_resized":
        return crop.crops
    if crop.score_all_windows:
        return windows
    if crop.crop_from == "shapley" and crop.alpha == 0:
        return 1
    return min(crop.crops, windows)


def _games(job: Job, count: int, device: str) -> Work:
    """One batch of images: (image, coalition) pairs in forwards of a constant size."""
    size = default_max_batch(torch.device(device))
    calls = batches(job.batch * count, size)
    amount = Amount(calls, calls * size)
    if job.precision != "fp32":
        # Each batch asks once which layer is the last.
        amount += Amount(1, 1)
    return {teacher_op(job, "game"): amount}
