"""The inner loop: a few dozen updates of the noise of one step (spec sections 3.6 and 11).

`shell` (ours) moves along the sphere of radius sqrt(D), where the norm's penalty has its minimum: the matching loss's
gradient without its radial part, divided by a running root mean square over a class's samples, which makes the step
size mean the same at every level, IPC, kappa and latent; momentum; a step size that falls along a cosine. On Gaussian
data of 28 px and more it passes the loss of 200 released iterations within 30.

`sgd` and `adam` are those of `torch.optim`, on one tensor and without its bookkeeping. The plateau rule looks every 10
iterations, so that a GPU is asked for a number ten times less often.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.objective import per_sample, shell

WINDOW = 10
GAIN = 0.01
BETA2 = 0.999
SHELL_BETA2 = 0.9
# Share of the step size that is left at the last iteration of `shell`.
LAST_SHARE = 0.05
TINY = 1e-8
# Of a root mean square: without any gradient nothing moves.
SMALLEST = 1e-30


@torch.no_grad()
def minimize(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], noise: Tensor, config: DscoConfig, classes: int = 1
) -> tuple[Tensor, Tensor]:
    """The noise [B * K, ...] of B classes after at most `config.iterations` updates from `noise`, which is not changed;
    and the losses before every update, [n, B].

    `objective` returns losses [B], which are only watched, and the gradient to follow. `config.iterations` is settled.
    """
    noise, losses = noise.clone(), []
    update = _UPDATES[config.optimizer](noise, config, classes)
    for iteration in range(config.iterations):
        if config.stop == "plateau" and iteration % WINDOW == 0 and _flat(losses):
            break
        loss, grad = objective(noise)
        losses.append(loss)
        noise = update(noise, grad, iteration)
        if config.norm == "project":
            noise = shell(noise)
    return noise, torch.stack(losses) if losses else noise.new_empty(0, classes)


def _flat(losses: list[Tensor]) -> bool:
    """Whether the best of the last window is less than 1 % below the best before it."""
    if len(losses) <= WINDOW:
        return False
    found = torch.stack(losses)
    return bool(found[-WINDOW:].min() > (1 - GAIN) * found[:-WINDOW].min())


class _Shell:
    """First moment over the root of each class's scalar second moment, bias-corrected, of the tangential gradient."""

    def __init__(self, noise: Tensor, config: DscoConfig, classes: int):
        self.first, self.second = torch.zeros_like(noise), noise.new_zeros(classes)
        self.lr, self.beta, self.iterations = config.settled_lr, config.settled_momentum, config.iterations

    def __call__(self, noise: Tensor, grad: Tensor, iteration: int) -> Tensor:
        radial = (grad * noise).flatten(1).sum(1) / noise.flatten(1).square().sum(1)
        tangential = grad - per_sample(radial, noise) * noise
        self.first.lerp_(tangential, 1 - self.beta)
        self.second.lerp_(tangential.square().view(len(self.second), -1).mean(1), 1 - SHELL_BETA2)
        scale = (self.second / (1 - SHELL_BETA2 ** (iteration + 1))).sqrt().clamp(min=SMALLEST)
        scale = per_sample(scale.repeat_interleave(len(noise) // len(scale)), noise)
        cosine = 0.5 + 0.5 * math.cos(math.pi * iteration / self.iterations)
        rate = self.lr * (LAST_SHARE + (1 - LAST_SHARE) * cosine) / (1 - self.beta ** (iteration + 1))
        return noise - rate / scale * self.first


class _Sgd:
    """v <- momentum v + g; noise <- noise - lr v."""

    def __init__(self, noise: Tensor, config: DscoConfig, classes: int):
        self.velocity, self.lr, self.momentum = torch.zeros_like(noise), config.settled_lr, config.settled_momentum

    def __call__(self, noise: Tensor, grad: Tensor, iteration: int) -> Tensor:
        self.velocity.mul_(self.momentum).add_(grad)
        return noise.sub_(self.velocity, alpha=self.lr)


class _Adam:
    """Kingma and Ba, arXiv 1412.6980, with bias correction."""

    def __init__(self, noise: Tensor, config: DscoConfig, classes: int):
        self.first, self.second = torch.zeros_like(noise), torch.zeros_like(noise)
        self.lr, self.beta = config.settled_lr, config.settled_momentum

    def __call__(self, noise: Tensor, grad: Tensor, iteration: int) -> Tensor:
        self.first.lerp_(grad, 1 - self.beta)
        self.second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        scale = self.second.sqrt().div_(math.sqrt(1 - BETA2 ** (iteration + 1))).add_(TINY)
        return noise.addcdiv_(self.first, scale, value=-self.lr / (1 - self.beta ** (iteration + 1)))


_UPDATES = {"shell": _Shell, "sgd": _Sgd, "adam": _Adam}
