"""The training loop of a class-conditional diffusion prior on images held in memory.

Every draw of a step (which images, flips, levels, noise, dropped labels) is keyed by (seed, step), so a run that was
killed ends with the same weights as one that was not, on the same kind of machine with the same number of threads. The
levels of a batch are stratified over the schedule, which lowers the variance of the loss (ours). Several ranks share a
batch: each takes its rows, and gradients are averaged.

Minimizes w * |v_net - v|^2 with v = alpha * noise - sigma * clean and w = min(SNR, cap) / (SNR + 1), or the same for
epsilon with w = min(SNR, cap) / SNR (arXiv 2303.09556, section 3.4): both weigh the error of the clean image by
min(SNR, cap).
"""

import copy
import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.errors import UserError
from raydd.keyed import numpy_rng, torch_rng
from raydd.models.prior.schedule import read_table
from raydd.train.classifier import lr_factor, uses_bf16
from raydd.train.prior_recipe import PriorRecipe

# What AdamW keeps of every parameter.
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainingLatents:
    """What is learned from: mean [N,Ch,H,W] (uint8 pixels or fp16 latents), std fp16 or None, and labels int64 [N].

    `mirrored` is the same of the mirrored images where training may mirror latents; pixels are mirrored on the fly.
    """

    mean: Tensor
    std: Tensor | None
    labels: Tensor
    mirrored: tuple[Tensor, Tensor | None] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.mean.shape[1:])

    def batch(self, rows: Tensor, flips: Tensor, noise: Tensor) -> Tensor:
        """Latents fp32 of some rows, mirrored where `flips` says so; `noise` draws from the autoencoder's posterior."""
        mean, std = self.mean[rows], None if self.std is None else self.std[rows]
        if self.mean.dtype == torch.uint8:
            mean = torch.where(flips.view(-1, 1, 1, 1), mean.flip(-1), mean)
            return mean.float() / 127.5 - 1
        if self.mirrored is not None:
            at, (mean_m, std_m) = flips.nonzero().flatten(), self.mirrored
            mean[at] = mean_m[rows[at]]
            if std is not None:
                std[at] = std_m[rows[at]]
        return mean.float() if std is None else mean.float() + std.float() * noise


class DenoiserTraining:
    """A denoiser on its data: network, its exponential average, optimizer, and the number of steps done."""

    def __init__(
        self,
        net: nn.Module,
        recipe: PriorRecipe,
        data: TrainingLatents,
        num_classes: int,
        device: str,
        rank: int = 0,
        world: int = 1,
    ):
        if recipe.batch % world:
            raise UserError(f"--batch {recipe.batch} does not divide by {world} workers: choose a multiple of {world}")
        self.recipe, self.data, self.num_classes, self.device = recipe, data, num_classes, torch.device(device)
        self.rank, self.world = rank, world
        self.net = net.to(device)
        self.parameters = dict(self.net.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        table = read_table(recipe.scheduler(), pixels=False)
        self.alphas, self.sigmas = (torch.from_numpy(x).float().to(device) for x in (table.alphas, table.sigmas))
        self.bf16 = uses_bf16(recipe.precision, self.device)
        self.epoch = 0  # steps done, under the name that `raydd.train.resume` stores

    def run(self, until: int) -> dict[str, float]:
        """Train up to `until` steps; returns step, steps, mean loss, seconds and images_per_second of this stretch."""
        start, first = time.perf_counter(), self.epoch
        total = torch.zeros((), device=self.device)
        while self.epoch < until:
            total += self._step(self.epoch)
            self.epoch += 1
        count = max(1, self.epoch - first)
        if self.world > 1:
            dist.all_reduce(total)
            total /= self.world
        loss, seconds = total.item() / count, time.perf_counter() - start
        facts = {"step": self.epoch, "steps": self.recipe.steps, "loss": loss, "seconds": seconds}
        return facts | {"images_per_second": count * self.recipe.batch / seconds}

    def averaged(self) -> nn.Module:
        """A frozen copy of the network with its averaged weights."""
        net = copy.deepcopy(self.net).requires_grad_(False)
        net.load_state_dict(self.average, strict=False)
        return net

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and AdamW's moments on the CPU, to be stored beside the number of steps."""
        tensors = {f"average.{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter
            for part, tensor in self.optimizer.state[parameter].items():
                tensors[f"{part}.{name}"] = tensor
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], epoch: int) -> None:
        """Go on from `state` after `epoch` steps."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"model.{name}"])
            self.average[name].copy_(state[f"average.{name}"])
            moments = {part: torch.empty_like(parameter).copy_(state[f"{part}.{name}"]) for part in MOMENTS}
            self.optimizer.state[parameter] = {"step": state[f"step.{name}"], **moments}
        self.epoch = epoch

    def _step(self, step: int) -> Tensor:
        recipe = self.recipe
        clean, noise, levels, labels = self._draw(step)
        alpha, sigma = (x[levels].view(-1, 1, 1, 1) for x in (self.alphas, self.sigmas))
        noised = alpha * clean + sigma * noise
        target = noise if recipe.prediction == "epsilon" else alpha * noise - sigma * clean
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.net(noised, levels, class_labels=labels, return_dict=False)[0]
        errors = F.mse_loss(output.float(), target, reduction="none").mean((1, 2, 3))
        loss = (loss_weights(alpha, sigma, recipe).flatten() * errors).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.world > 1:
            self._share_gradients()
        if not torch.isfinite(nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)):
            raise UserError(f"training diverged at step {step}: use a smaller --lr than {recipe.lr:g}")
        self.optimizer.param_groups[0]["lr"] = recipe.lr * lr_factor("cosine", step, recipe.steps)
        self.optimizer.step()
        # The ramp lets a short training forget its random start.
        kept = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - kept)
        return loss.detach()

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean latents, noise, levels and labels (some of them null) of this rank's share of a step's batch."""
        recipe, mine = self.recipe, slice(self.rank, None, self.world)
        rng = torch_rng("prior", recipe.seed, step)
        shape = (recipe.batch, *self.data.shape)
        noise, own = (
            torch.randn(2, *shape, generator=rng)[:, mine]
            if self.data.std is not None
            else (
                torch.randn(shape, generator=rng)[mine],
                torch.zeros(()),
            )
        )
        u = torch.rand(4, recipe.batch, generator=rng)
        levels = ((torch.arange(recipe.batch) + u[0]) / recipe.batch * len(self.alphas)).long()
        rows = batch_rows(len(self.data.labels), recipe.batch, step, recipe.seed)
        labels = self.data.labels[rows].where(u[1] >= recipe.label_dropout, self.num_classes)
        flips = (u[2] < 0.5) & recipe.flip
        clean = self.data.batch(rows[mine], flips[mine], own)
        return tuple(part.to(self.device) for part in (clean, noise, levels[mine], labels[mine]))

    def _share_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters.values()]
        flat = torch._utils._flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients)):
            gradient.copy_(part)


def loss_weights(alpha: Tensor, sigma: Tensor, recipe: PriorRecipe) -> Tensor:
    """Min-SNR weights of the squared error of what is predicted; 1 everywhere without a cap."""
    if recipe.snr_cap is None:
        return torch.ones_like(alpha)
    snr = (alpha / sigma) ** 2
    return snr.clamp(max=recipe.snr_cap) / (snr if recipe.prediction == "epsilon" else snr + 1)


def batch_rows(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Image numbers int64 [batch] of a step: consecutive pieces of one keyed permutation per pass over the images."""
    rows = np.arange(step * batch, (step + 1) * batch)
    return torch.tensor([_order(count, int(row) // count, seed)[row % count] for row in rows])


@functools.lru_cache(maxsize=2)
def _order(count: int, number: int, seed: int) -> np.ndarray:
    return numpy_rng("prior-order", seed, number).permutation(count)
