"""Noise optimization with access to the source (DsCo; spec section 3): one class, or one chunk of it, at a time.

The K samples of a class are drawn together; at every sampling step the noise that the step injects is optimized until
the samples' random features are distributed as those of the class's real images at the same noise level. No gradient
passes through the denoiser.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import DTYPES, FeatureNet
from raydd.distill.dsco.lattice import medoids, start_noise
from raydd.distill.dsco.loop import Result, State, Task, check_noise, descend
from raydd.distill.dsco.objective import Matching
from raydd.distill.dsco.targets import Targets, make_targets, noised_features, topped_up
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prior, Schedule


def synthesize(
    prior: Prior,
    reals: Tensor,
    *,
    class_name: str,
    label: int | None,
    ipc: int,
    config: DscoConfig,
    seed: int,
    chunk: int = 0,
    batch: int = 256,
    start_state: State | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """`ipc` latents of a class whose real latents are `reals` [N, Ch, H, W], in key order, any float dtype.

    `ipc` counts the images of this chunk (`loop.chunks`). `label` is the prior's (None: unconditional, which needs
    `start=real`). `on_step` sees the state after every step; given back as `start_state`, it goes on with the same
    bits. Raises `UserError` for what cannot be optimized, `FloatingPointError` for a prior that breaks down.
    """
    config.check()
    config = config.at(prior.latent_shape)
    check_reals(prior, reals, class_name, label, config)
    schedule = prior.schedule(config.steps)
    check_noise(schedule, config.eta)
    task = Task(class_name, label, ipc, seed, chunk, batch)
    reals = reals.to(prior.device)
    nets = feature_nets(prior, config, seed, class_name)

    def objective_at(i: int, mean: Tensor, std: Tensor) -> Matching:
        targets = targets_at(nets, reals, schedule, i, task, config)
        return Matching(nets, targets, mean, std, config)

    state = start_state or start(prior, reals, schedule, task, config)
    return descend(prior, schedule, state, task, config, objective_at, on_step)


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
    dtype = DTYPES[config.feature_precision]
    keys = [(seed, "phi", *own, *([n] if n else [])) for n in range(config.num_extractors)]
    return [FeatureNet(prior.latent_shape, *key, device=prior.device, dtype=dtype) for key in keys]


def targets_at(
    nets: list[FeatureNet], reals: Tensor, schedule: Schedule, i: int, task: Task, config: DscoConfig
) -> list[Targets]:
    """Targets of step i for `task.count` samples, per net; the noise is the class's, whatever count and chunk."""
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


def start(prior: Prior, reals: Tensor, schedule: Schedule, task: Task, config: DscoConfig) -> State:
    """The state before the first step: noise at the last level, or medoids of the class noised to `real_level`."""
    key, last = task.key("start"), len(schedule) - 1
    if config.start != "real":
        noise = start_noise(config.start, task.count, prior.latent_shape, key, config.start_unit_variance)
        return State(last, schedule.start * noise.to(prior.device), [])
    i = min(last, max(1, round(config.real_level * len(schedule)) - 1))
    alpha, sigma = schedule.level(i)
    rows = reals[medoids(reals, task.count, key)].float()
    return State(i, alpha * rows + sigma * prior.draw(task.count, torch_rng(*key)), [])
