"""The training loop of a classifier on images held in memory: SGD with momentum, one state per epoch to resume from.

Batch order, views and the network's own draws (dropout) come from (seed, epoch), and an epoch is cut into batches of
nearly equal size, so a run that was killed ends with the same weights as one that was not, on the same kind of machine
with the same number of threads. Convolutions run in bfloat16 where the hardware has it, and in the faster layout.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.errors import choose
from raydd.keyed import hash64, numpy_rng
from raydd.models.arithmetic import native_bf16
from raydd.models.normalization import Normalization
from raydd.train.crops import apply_views, draw_views
from raydd.train.layout import memory_format

PRECISIONS = ("auto", "bf16", "fp32")
SCHEDULES = ("cosine", "constant")
WARMUP = 0.05  # share of a cosine schedule that climbs linearly (ours)


@dataclass(frozen=True)
class Optimization:
    """How a classifier is trained: SGD, with Nesterov momentum under the cosine schedule (ours).

    `lr` is the peak rate; weight decay acts on every parameter, as in the distillation literature.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    augment: str = "resized_crop"
    flip: bool = True
    precision: str = "auto"
    seed: int = 0


class ClassifierTraining:
    """A network on its images uint8 [N, 3, S, S] and labels int64 [N], its optimizer, and the number of epochs done."""

    def __init__(
        self,
        model: nn.Module,
        plan: Optimization,
        normalization: Normalization,
        device: str | torch.device,
        images: Tensor,
        labels: Tensor,
    ):
        choose("schedule", plan.schedule, SCHEDULES)
        self.device = torch.device(device)
        self.layout = memory_format(model, self.device)
        self.model = model.to(self.device, memory_format=self.layout)
        self.plan, self.normalization, self.epoch = plan, normalization, 0
        self.images, self.labels = images, labels
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=plan.lr,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=plan.schedule == "cosine" and plan.momentum > 0,
        )

    def epochs(self) -> Iterator[dict[str, float]]:
        """Run the epochs that are left, and give epoch, epochs, mean loss, seconds and images_per_second after each."""
        while self.epoch < self.plan.epochs:
            start = time.perf_counter()
            loss = self._run_epoch()
            seconds = time.perf_counter() - start
            facts = {"epoch": self.epoch, "epochs": self.plan.epochs, "loss": loss}
            yield facts | {"seconds": seconds, "images_per_second": len(self.images) / seconds}

    def state(self) -> dict[str, Tensor]:
        """Weights and momentum on the CPU, to be stored beside `epoch`."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if (momentum := self.optimizer.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def restore(self, state: dict[str, Tensor], epoch: int) -> None:
        """Go on from `state` after `epoch` epochs."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            if f"momentum.{name}" in state:
                # Same strides as the parameter's: other strides take another kernel, which may round differently.
                momentum = torch.empty_like(parameter).copy_(state[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.detach()
        self.epoch = epoch

    def _run_epoch(self) -> float:
        plan, key = self.plan, (self.plan.seed, self.epoch)
        count = len(self.images)
        steps = -(-count // plan.batch)
        order = numpy_rng("order", *key).permutation(count)
        maps = draw_views(plan.augment, plan.flip, count, self.images.shape[-1], *key)
        total = torch.zeros((), device=self.device)
        self.model.train()
        with _own_draws(self.device, "dropout", *key):
            for step, rows in enumerate(np.array_split(order, steps)):
                rate = plan.lr * lr_factor(plan.schedule, self.epoch * steps + step, plan.epochs * steps)
                rows = torch.from_numpy(rows)
                views = apply_views(self.normalization.apply(self.images[rows].to(self.device)), maps[rows])
                total += self._step(views, self.labels[rows].to(self.device), rate) * len(rows)
        self.epoch += 1
        return total.item() / count

    def _step(self, views: Tensor, labels: Tensor, rate: float) -> Tensor:
        self.optimizer.param_groups[0]["lr"] = rate
        views = views.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bf16(self.plan.precision, self.device)):
            logits = self.model(views)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """Factor of the peak learning rate at `step` of `steps`: linear climb, then cosine to 0; or 1 throughout."""
    if schedule == "constant":
        return 1.0
    warmup = max(1, round(WARMUP * steps))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train in bfloat16: as told, or by itself on CUDA and on CPUs with native bfloat16 arithmetic."""
    if choose("precision", precision, PRECISIONS) != "auto":
        return precision == "bf16"
    return native_bf16(device)


@contextlib.contextmanager
def _own_draws(device: torch.device, *key: object) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(hash64(*key) >> 1)
        yield
