"""Noise optimization without the source (DsCo, NODD; spec section 4): statistics of the prior's own samples.

Templates are plain samples of a class. After every step the mean and deviation of every channel of the unpooled feature
map (or, with `features=latent`, of every entry of the latent, as NODD does) are kept over samples and positions. The
synthesis then makes K samples whose maps have those statistics and are unlike each other:

    J = L_norm + 10 sum_j max_{k != j} cos(z_j, z_k) + kappa / F * (|mean(z)|_12 + |std(z) - 1|_12),
    |t|_12 = sum |t| + t^2,   z = (map(mu + s eps) - mean) / std

This undoes only the small-sample deviation from the guided prior, not the prior's own bias. The map is not pooled
before it is standardized, so the exact shortcut of `features.py` does not apply and autograd does the work.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import FeatureNet, feature_dtype
from raydd.distill.dsco.lattice import start_noise
from raydd.distill.dsco.loop import Result, State, Task, check_finite, check_noise, descend, predict
from raydd.distill.dsco.objective import absolute_and_square, norm_gap
from raydd.distill.dsco.targets import FLOOR
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prior
from raydd.models.prior.step import posterior

# NODD matches raw latents with ten times the weight.
LATENT_FACTOR = 10.0


@dataclasses.dataclass(frozen=True)
class Templates:
    """mean, std fp32 [T, channels, 1] of every level that a step leaves: row i belongs to step i (row 0 is unused)."""

    mean: Tensor
    std: Tensor


def template_net(prior: Prior, config: DscoConfig, seed: int) -> FeatureNet | None:
    """The one net of all classes, of statistics and synthesis alike; None for raw latents."""
    if config.features == "latent":
        return None
    dtype = feature_dtype(config.feature_precision, prior.device)
    return FeatureNet(prior.latent_shape, seed, "phi", device=prior.device, dtype=dtype)


@torch.no_grad()
def template_statistics(prior: Prior, task: Task, config: DscoConfig, batch: int = 64) -> Templates:
    """Statistics of `config.templates` plain samples of the task's class; the same for every count and chunk.

    Raises `UserError` where no step injects noise, `FloatingPointError` for a prior that breaks down.
    """
    config.check()
    schedule, net = prior.schedule(config.steps), template_net(prior, config, task.seed)
    check_noise(schedule, config.eta)
    tasks = (dataclasses.replace(task, count=config.templates, batch=batch),)
    key = (task.seed, task.class_name, "template")
    x = schedule.start * prior.draw(config.templates, torch_rng(*key, "start"))
    found: list[tuple[Tensor, Tensor]] = []
    for i in reversed(range(1, len(schedule))):
        prediction = predict(prior, x, schedule, i, tasks, config.guidance)
        mean, std = posterior(prediction, schedule, i, config.eta)
        x = mean + std * prior.draw(config.templates, torch_rng(*key, "step", i))
        check_finite(x, tasks, i, "the template samples")
        moments = _moments(torch.cat([_map(net, part) for part in x.split(batch)])[None])
        found.append(tuple(t[0] for t in moments))
    unused = tuple(torch.zeros_like(t) for t in found[0])
    means, stds = zip(unused, *reversed(found))
    return Templates(torch.stack(means), torch.stack(stds))


def synthesize_free(
    prior: Prior,
    templates: Sequence[Templates],
    tasks: Sequence[Task],
    config: DscoConfig,
    *,
    start_state: State | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """The tasks' latents from each class's `template_statistics`; otherwise as `nopt.synthesize`."""
    config.check()
    config = config.at(prior.latent_shape)
    schedule, net = prior.schedule(config.steps), template_net(prior, config, tasks[0].seed)
    check_noise(schedule, config.eta)
    statistics = [
        torch.stack([getattr(found, name) for found in templates], 1).to(prior.device) for name in ("mean", "std")
    ]

    def objective_at(i: int, mean: Tensor, std: Tensor) -> FreeMatching:
        return FreeMatching(net, *(t[i] for t in statistics), mean, std, config)

    state = start_state
    if state is None:
        noise = torch.cat([start_noise("gaussian", t.count, prior.latent_shape, t.key("start")) for t in tasks])
        state = State(len(schedule) - 1, schedule.start * noise.to(prior.device), [[] for _ in tasks])
    return descend(prior, schedule, state, tasks, config, objective_at, on_step)


@dataclasses.dataclass(frozen=True)
class FreeMatching:
    """The objective of one step; `target_mean`, `target_std` [B, channels, 1] are one step's rows of `Templates`."""

    net: FeatureNet | None
    target_mean: Tensor
    target_std: Tensor
    mean: Tensor
    std: Tensor
    config: DscoConfig

    def loss(self, noise: Tensor) -> Tensor:
        """The statistics' terms per channel, [B]: what to log."""
        return self(noise)[0]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics' terms per channel, [B], and the gradient of J to the noise [B * K, Ch, H, W]."""
        with torch.enable_grad():
            noise = noise.detach().requires_grad_()
            maps = _map(self.net, self.mean + self.std * noise)
            maps = maps.view(len(self.target_mean), -1, *maps.shape[1:])
            z = (maps - self.target_mean[:, None]) / self.target_std[:, None]
            mean, std = _moments(z)
            gaps = (absolute_and_square(mean)[0] + absolute_and_square(std - 1)[0]) / mean[0].numel()
            factor = LATENT_FACTOR if self.net is None else 1.0
            total = factor * self.config.kappa_free * gaps.sum()
            total = total + self.config.cosine_weight * nearest_cosines(z).sum()
            if self.config.norm == "penalty":
                off = norm_gap(noise)
                total = total + self.config.norm_weight * absolute_and_square(off[:, None])[0]
            (grad,) = torch.autograd.grad(total, noise)
        return gaps.detach(), grad


def nearest_cosines(z: Tensor) -> Tensor:
    """Of every sample of z [B, K, ...], its largest cosine to another of its class, [B, K]; zero for single samples."""
    flat = torch.nn.functional.normalize(z.flatten(2), dim=2)
    if z.shape[1] == 1:
        return 0 * flat.sum(2)
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return (flat @ flat.mT).masked_fill(own, -2).max(2).values


def _map(net: FeatureNet | None, x: Tensor) -> Tensor:
    """What is matched, [K, channels, positions]: a feature map, or the latent with every entry its own channel."""
    return x.flatten(1)[:, :, None] if net is None else net.maps(x).flatten(2)


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased deviation of every class's channels over its samples and positions: z [B, K, channels,
    positions] to [B, channels, 1]."""
    std, mean = torch.std_mean(z, (1, 3), correction=0, keepdim=True)
    std = std[:, 0]
    floor = (FLOOR * std.detach().median(1, keepdim=True).values).clamp(min=1e-30)
    return mean[:, 0], std.clamp(min=floor)
