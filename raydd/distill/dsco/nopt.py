"""Noise optimization with access to the source (DsCo; spec section 3) of a chunk of one class, or of several classes.

The K samples of a class are drawn together; at every sampling step the noise that the step injects is optimized until
the samples' random features are distributed as those of the class's real images at the same noise level. No gradient
passes through the denoiser.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import FeatureNet, feature_dtype
from raydd.distill.dsco.lattice import medoids, start_noise
from raydd.distill.dsco.loop import Result, State, Task, check_noise, descend, draw
from raydd.distill.dsco.objective import Matching
from raydd.distill.dsco.targets import Targets, make_targets, noised_features, stacked, topped_up
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prior, Schedule


def synthesize(
    prior: Prior,
    reals: Sequence[Tensor],
    tasks: Sequence[Task],
    config: DscoConfig,
    *,
    start_state: State | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """The tasks' latents; `reals` are each class's real latents [N, Ch, H, W], in key order, any float dtype.

    `Task.count` counts the images of this chunk (`loop.chunks`); an unconditional prior needs `start=real`. `on_step`
    sees the state after every step; given back as `start_state`, it goes on with the same bits. Raises `UserError` for
    what cannot be optimized, `FloatingPointError` for a prior that breaks down.
    """
    config.check()
    config = config.at(prior.latent_shape)
    for images, task in zip(reals, tasks, strict=True):
        check_reals(prior, images, task.class_name, task.label, config)
    schedule = prior.schedule(config.steps)
    check_noise(schedule, config.eta)
    reals = [images.to(prior.device) for images in reals]
    nets = feature_nets(prior, config, tasks[0].seed, tasks[0].class_name)

    def objective_at(i: int, mean: Tensor, std: Tensor) -> Matching:
        found = [targets_at(nets, images, schedule, i, task, config) for images, task in zip(reals, tasks)]
        return Matching(nets, [stacked(of_net) for of_net in zip(*found)], mean, std, config)

    state = start_state or start(prior, reals, schedule, tasks, config)
    return descend(prior, schedule, state, tasks, config, objective_at, on_step)


def check_reals(prior: Prior, reals: Tensor, class_name: str, label: int | None, config: DscoConfig) -> None:
    """Raise `UserError` for no images, latents of another prior, or an unconditional prior that starts from noise."""
    if not len(reals):
        raise UserError(f"class {class_name!r} has no real image: leave it out of --classes")
    if tuple(reals.shape[1:]) != tuple(prior.latent_shape):
        shapes = (tuple(reals.shape[1:]), tuple(prior.latent_shape))
        raise UserError(f"class {class_name!r}: latents of shape {shapes[0]}, the prior's are {shapes[1]}")
    if label is None and config.start != "real":
        raise UserError("an unconditional prior cannot choose a class: use --start real, or a class-conditional prior")


def feature_nets(prior: Prior, config: DscoConfig, seed: int, class_name: str) -> list[FeatureNet]:
    """The run's feature nets, or the class's own."""
    own = (class_name,) if config.extractor == "per-class" else ()
    dtype = feature_dtype(config.feature_precision, prior.device)
    keys = [(seed, "phi", *own, *([n] if n else [])) for n in range(config.num_extractors)]
    return [FeatureNet(prior.latent_shape, *key, device=prior.device, dtype=dtype) for key in keys]


def targets_at(
    nets: list[FeatureNet], reals: Tensor, schedule: Schedule, i: int, task: Task, config: DscoConfig
) -> list[Targets]:
    """Targets of step i for a class's `task.count` samples, per net; the noise is the class's, whatever the chunk."""
    level = schedule.level(i - 1 if config.target_level == "after" else i)
    key = (task.seed, task.class_name, "target", i)
    reals, rounds = thinned(reals, task.count, config, (*key, "subset"))
    topup = config.bins == "topup"
    if topup:
        rounds = max(rounds, -(-task.count // len(reals)))
    found = []
    for net in nets:
        rows = noised_features(net, reals, level, rounds=rounds, strata=config.strata, key=key)
        if topup:
            rows = topped_up(rows, net, reals, level, task.count, key)
        found.append(make_targets(rows, task.count, task.class_name))
    return found


def thinned(reals: Tensor, count: int, config: DscoConfig, key: tuple) -> tuple[Tensor, int]:
    """The images and rounds that `rows_per_image` leaves: fewer rounds first, then a keyed subset in key order."""
    if config.rows_per_image is None:
        return reals, config.rounds
    rows = max(2, config.rows_per_image * count)
    if len(reals) <= rows:
        return reals, max(1, min(config.rounds, rows // len(reals)))
    kept = torch.randperm(len(reals), generator=torch_rng(*key))[:rows].sort().values
    return reals[kept.to(reals.device)], 1


def start(
    prior: Prior, reals: Sequence[Tensor], schedule: Schedule, tasks: Sequence[Task], config: DscoConfig
) -> State:
    """The state before the first step: noise at the last level, or medoids of the class noised to `real_level`."""
    last, logs = len(schedule) - 1, [[] for _ in tasks]
    if config.start != "real":
        unit = config.start_unit_variance
        each = [start_noise(config.start, t.count, prior.latent_shape, t.key("start"), unit) for t in tasks]
        return State(last, schedule.start * torch.cat(each).to(prior.device), logs)
    i = min(last, max(1, round(config.real_level * len(schedule)) - 1))
    alpha, sigma = schedule.level(i)
    rows = [images[medoids(images, task.count, task.key("start"))].float() for images, task in zip(reals, tasks)]
    return State(i, alpha * torch.cat(rows) + sigma * draw(prior, tasks, "start"), logs)
