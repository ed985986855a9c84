"""Train one student on a (distilled) set by a protocol, and test it: one loop for every row of evaluation.md's table.

    for each step:  views and CutMix from (seed, step); targets from the label form; loss; optimizer step; average
    at each check:  test the student, or its average; the last check is the result, the best one is only noted

The seed fixes initialization, batch order and augmentation for every method alike, so differences between methods are
paired. `steps` sets the number of optimizer steps, so that full data trains exactly as long as a distilled set; the
learning rate then follows the same curve over the run. With several processes (`world` > 1, on an initialized
torch.distributed group) each takes its slice of every batch; the result equals that of one process up to rounding for
networks without batch statistics.

bf16 runs forward passes (teacher's included) under autocast; augmentation, loss and weights stay float32.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raydd.config import content_hash
from raydd.errors import UserError
from raydd.keyed import hash64
from raydd.models.registry import build_model
from raydd.train.batches import Batch, Batches, Normalizer
from raydd.train.ema import Ema
from raydd.train.layout import memory_format
from raydd.train.optim import build_optimizer
from raydd.train.protocol import Protocol
from raydd.train.schedule import reference_epoch
from raydd.train.sets import TrainSet, ValSet
from raydd.train.snapshot import Snapshots, pack, read_record, unpack
from raydd.train.testing import Accuracy, measure_accuracy

__all__ = ["LabelForm", "Snapshots", "StudentResult", "TrainSet", "ValSet", "loss_of", "train_student"]

Progress = Callable[[int, int, float | None], None]
Validation = ValSet | Iterable[tuple[Tensor, Tensor]]
PROGRESS_STEPS = 50


class LabelForm(Interface):
    """Targets of a batch of views (`raydd.evaluate.labels`).

    `kind` is `hard` or `soft`. `seed`: the seed the labels were made for, or None if they fit any. `teacher_forwards`:
    forwards of a teacher per image seen.
    """

    kind: str
    seed: int | None
    teacher_forwards: int

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K], of logits divided by `temperature`, on the device of the batch."""


@dataclass(frozen=True)
class StudentResult:
    """What one training of one student gave; accuracies in [0, 1].

    `last`, `top5`, `per_class`: after the last step. `best`: the highest top-1 over `curve`, the list of (step, top-1).
    `images_seen` counts views over all processes; `seconds` includes tests, and the time before a resumption.
    """

    last: float
    best: float
    top5: float
    per_class: list[float]
    curve: list[tuple[int, float]]
    steps: int
    images_seen: int
    teacher_forwards: int
    seconds: float
    device: str


def train_student(
    train: TrainSet,
    val: Validation,
    protocol: Protocol,
    arch: str,
    seed: int,
    *,
    num_classes: int,
    normalization: Normalizer,
    labels: LabelForm,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    progress: Progress | None = None,
    state: Snapshots | None = None,
    rank: int = 0,
    world: int = 1,
    keep: Callable[[nn.Module], None] | None = None,
) -> StudentResult:
    """Train `arch` on `train` by `protocol` and test it on `val` (images already resized and center cropped).

    `val` may be any iterable of (uint8 [B, 3, S, S], int64 [B]) that can be iterated repeatedly. `steps` overrides the
    number of optimizer steps. `progress(step, steps, top1 or None)` is called at checks and every 50 steps. `state`
    keeps a snapshot, from which the same call goes on to the same result. `keep` is given the trained network (its
    average, where the protocol tests that). The global random state is left as it was.
    Raises `UserError` when the label form does not fit the protocol.
    """
    if labels.kind != protocol.labels:
        raise UserError(
            f"protocol {protocol.name} needs {protocol.labels} labels, not {labels.kind} ones: choose "
            f"{'labels online, views, patch or single' if protocol.labels == 'soft' else 'labels hard'}"
        )
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = _Run(train, protocol, arch, seed, num_classes, normalization, labels, device, steps, rank, world)
        run.resume(state)
        result = run.finish(val, progress, state)
        if keep:
            keep(run.tested)
        return result


def loss_of(logits: Tensor, targets: Tensor, kind: str, temperature: float) -> Tensor:
    """Loss per image, float32 [B], from logits and probabilities [B, K].

    `ce`: cross-entropy of the logits. `kl`: KL(targets || softmax(logits / temperature)), without a factor T^2.
    """
    if kind == "ce":
        return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    student = F.log_softmax(logits.float() / temperature, dim=1)
    return F.kl_div(student, targets, reduction="none").sum(dim=1)


class _Run:
    """The state of one training."""

    def __init__(
        self,
        train: TrainSet,
        protocol: Protocol,
        arch: str,
        seed: int,
        num_classes: int,
        normalization: Normalizer,
        labels: LabelForm,
        device: torch.device,
        steps: int | None,
        rank: int,
        world: int,
    ):
        self.protocol, self.arch, self.labels, self.device = protocol, arch, labels, device
        self.num_classes, self.normalization, self.seed = num_classes, normalization, seed
        self.rank, self.world = rank, world
        self.steps = steps or protocol.steps(len(train))
        view_seed = seed if labels.seed is None else labels.seed
        self.batches = Batches(train, protocol, view_seed, normalization, device=device, rank=rank, world=world)
        size = train.images.shape[-1]
        net = build_model(arch, num_classes=num_classes, image_size=size, norm=protocol.norm, seed=seed)
        self.layout = memory_format(net, device)
        self.net = net.to(device, memory_format=self.layout).train()
        self.ema = Ema(self.net, protocol.ema) if protocol.ema else None
        self.optimizer = build_optimizer(self.net, protocol, arch)
        self.identity = content_hash(
            [protocol.hash, arch, seed, view_seed, type(labels).__name__, num_classes, self.steps, train.fingerprint()]
        )
        self.step, self.images_seen, self.seconds, self.curve = 0, 0, 0.0, []
        self.last: Accuracy | None = None

    @property
    def bf16(self) -> bool:
        return self.protocol.precision == "bf16"

    @property
    def tested(self) -> nn.Module:
        """The network that is tested: the trained one, or its average."""
        return self.net if self.ema is None else self.ema.net

    def resume(self, state: Snapshots | None) -> None:
        tensors = state.load() if state else None
        if tensors is not None:
            record = read_record(tensors)
            if record["identity"] == self.identity:
                unpack(tensors, self.net, self.ema, self.optimizer)
                self.step, self.images_seen = record["step"], record["images_seen"]
                self.seconds, self.curve = record["seconds"], [tuple(point) for point in record["curve"]]
        # After the weights are in place: constructing DDP hands those of rank 0 to all, and waits for all.
        self.model = self.net
        if self.world > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=ids)

    def finish(self, val: Validation, progress: Progress | None, state: Snapshots | None) -> StudentResult:
        checks = self.protocol.check_steps(self.steps)
        saved = time.monotonic()
        started = saved - self.seconds
        while self.step < self.steps:
            self.advance()
            accuracy = None
            if self.step in checks:
                self.last = self.test(val)
                accuracy = self.last.top1
                self.curve.append((self.step, accuracy))
            if progress and (accuracy is not None or self.step % PROGRESS_STEPS == 0):
                progress(self.step, self.steps, accuracy)
            self.seconds = time.monotonic() - started
            if state and self.rank == 0 and self.step < self.steps and time.monotonic() - saved >= state.every_s:
                state.save(pack(self.net, self.ema, self.optimizer, self.record()))
                saved = time.monotonic()
        return self.result()

    def advance(self) -> None:
        """One optimizer step."""
        batch = self.batches.batch(self.step)
        # Dropout is the one thing left that draws from torch's own stream.
        torch.manual_seed(hash64(self.seed, "dropout", self.step, self.rank) >> 1)
        epoch = reference_epoch(self.step, self.steps, self.protocol.epochs)
        rate = self.protocol.lr_for(self.arch) * self.protocol.schedule.factor(epoch, self.protocol.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(batch)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.net)
        self.step += 1
        self.images_seen += batch.total

    def backward(self, batch: Batch) -> None:
        """Gradient of the mean loss over the step's views (DDP averages over processes, hence `world`)."""
        images = batch.images.contiguous(memory_format=self.layout)
        scale = batch.weight * self.world / batch.total
        with self.autocast():
            targets = self.labels.targets(batch, self.protocol.temperature)
            if self.protocol.double_bn_update:
                with torch.no_grad():
                    self.net(images)
        parts = min(self.protocol.accumulate, len(batch))
        for index, (x, y) in enumerate(zip(images.tensor_split(parts), targets.tensor_split(parts))):
            if self.world > 1:
                self.model.require_backward_grad_sync = index == parts - 1
            with self.autocast():
                logits = self.model(x)
            loss = loss_of(logits, y, self.protocol.loss, self.protocol.temperature)
            (loss.sum() * scale).backward()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def test(self, val: Validation) -> Accuracy:
        where = {"device": self.device, "rank": self.rank, "world": self.world}
        return measure_accuracy(self.tested, val, self.normalization, self.num_classes, bf16=self.bf16, **where)

    def record(self) -> dict:
        names = ("identity", "step", "images_seen", "seconds", "curve")
        return {name: getattr(self, name) for name in names}

    def result(self) -> StudentResult:
        assert self.last is not None
        return StudentResult(
            last=self.last.top1,
            best=max(accuracy for _, accuracy in self.curve),
            top5=self.last.top5,
            per_class=list(self.last.per_class),
            curve=self.curve,
            steps=self.steps,
            images_seen=self.images_seen,
            teacher_forwards=self.images_seen * self.labels.teacher_forwards,
            seconds=self.seconds,
            device=str(self.device),
        )
