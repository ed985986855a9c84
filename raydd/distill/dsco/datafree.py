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
from collections.abc import Callable

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.features import DTYPES, FeatureNet
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
    """mean, std fp32 [T, ...] of every level that a step leaves: row i belongs to step i (row 0 is unused)."""

    mean: Tensor
    std: Tensor


def template_net(prior: Prior, config: DscoConfig, seed: int) -> FeatureNet | None:
    """The one net of all classes, of statistics and synthesis alike; None for raw latents."""
    if config.features == "latent":
        return None
    return FeatureNet(prior.latent_shape, seed, "phi", device=prior.device, dtype=DTYPES[config.feature_precision])


@torch.no_grad()
def template_statistics(
    prior: Prior, *, class_name: str, label: int, config: DscoConfig, seed: int, batch: int = 64
) -> Templates:
    """Statistics of `config.templates` plain samples of a class; the same for every `ipc` and chunk.

    Raises `UserError` where no step injects noise, `FloatingPointError` for a prior that breaks down.
    """
    config.check()
    schedule, net = prior.schedule(config.steps), template_net(prior, config, seed)
    check_noise(schedule, config.eta)
    task = Task(class_name, label, config.templates, seed, batch=batch)
    key = (seed, class_name, "template")
    x = schedule.start * prior.draw(task.count, torch_rng(*key, "start"))
    found: list[tuple[Tensor, Tensor]] = []
    for i in reversed(range(1, len(schedule))):
        prediction = predict(prior, x, schedule, i, label, config.guidance, batch)
        mean, std = posterior(prediction, schedule, i, config.eta)
        x = mean + std * prior.draw(task.count, torch_rng(*key, "step", i))
        check_finite(x, task, i, "the template samples")
        found.append(_moments(torch.cat([_map(net, part) for part in x.split(batch)])))
    unused = tuple(torch.zeros_like(t) for t in found[0])
    means, stds = zip(unused, *reversed(found))
    return Templates(torch.stack(means), torch.stack(stds))


def synthesize_free(
    prior: Prior,
    templates: Templates,
    *,
    class_name: str,
    label: int,
    ipc: int,
    config: DscoConfig,
    seed: int,
    chunk: int = 0,
    batch: int = 256,
    start_state: State | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Result:
    """`ipc` latents of a class from its `template_statistics`; otherwise as `nopt.synthesize`."""
    config.check()
    config = config.at(prior.latent_shape)
    schedule, net = prior.schedule(config.steps), template_net(prior, config, seed)
    check_noise(schedule, config.eta)
    task = Task(class_name, label, ipc, seed, chunk, batch)

    def objective_at(i: int, mean: Tensor, std: Tensor) -> FreeMatching:
        statistics = tuple(t[i].to(mean.device) for t in (templates.mean, templates.std))
        return FreeMatching(net, *statistics, mean, std, config)

    noise = start_noise("gaussian", ipc, prior.latent_shape, task.key("start")).to(prior.device)
    state = start_state or State(len(schedule) - 1, schedule.start * noise, [])
    return descend(prior, schedule, state, task, config, objective_at, on_step)


@dataclasses.dataclass(frozen=True)
class FreeMatching:
    """The objective of one step; `target_mean`, `target_std` are one step's rows of `Templates`."""

    net: FeatureNet | None
    target_mean: Tensor
    target_std: Tensor
    mean: Tensor
    std: Tensor
    config: DscoConfig

    def loss(self, noise: Tensor) -> Tensor:
        """The statistics' terms per channel: the number to log."""
        return self(noise)[0]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics' terms per channel, and the gradient of J to the noise [K, Ch, H, W]."""
        with torch.enable_grad():
            noise = noise.detach().requires_grad_()
            z = (_map(self.net, self.mean + self.std * noise) - self.target_mean) / self.target_std
            mean, std = _moments(z)
            gaps = absolute_and_square(mean)[0] + absolute_and_square(std - 1)[0]
            factor = LATENT_FACTOR if self.net is None else 1.0
            total = factor * self.config.kappa_free / mean.numel() * gaps
            total = total + self.config.cosine_weight * nearest_cosines(z).sum()
            if self.config.norm == "penalty":
                total = total + self.config.norm_weight * absolute_and_square(norm_gap(noise))[0]
            (grad,) = torch.autograd.grad(total, noise)
        return gaps.detach() / mean.numel(), grad


def nearest_cosines(z: Tensor) -> Tensor:
    """Of every sample of z [K, ...], its largest cosine to another sample, [K]; zero for a single sample."""
    flat = torch.nn.functional.normalize(z.flatten(1), dim=1)
    if len(z) == 1:
        return 0 * flat.sum(1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (flat @ flat.T).masked_fill(own, -2).max(1).values


def _map(net: FeatureNet | None, x: Tensor) -> Tensor:
    """What is matched, [K, channels, positions]: a feature map, or the latent with every entry its own channel."""
    return x.flatten(1)[:, :, None] if net is None else net.maps(x).flatten(2)


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased deviation of every channel over samples and positions, shaped [channels, 1]."""
    std, mean = torch.std_mean(z, (0, 2), correction=0, keepdim=True)
    return mean[0], std[0].clamp(min=max(FLOOR * float(std.detach().median()), 1e-30))
