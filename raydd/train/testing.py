"""Accuracy of a student on the validation set, alone or shared between processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raydd.train.batches import Normalizer
from raydd.train.layout import memory_format
from raydd.train.sets import ValSet

TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy (top-K for fewer than five classes), per-class top-1 (nan for a class without images),
    all in [0, 1], and the number of images."""

    top1: float
    top5: float
    per_class: tuple[float, ...]
    count: int


@torch.no_grad()
def measure_accuracy(
    net: nn.Module,
    val: ValSet | Iterable[tuple[Tensor, Tensor]],
    normalization: Normalizer,
    num_classes: int,
    *,
    device: torch.device,
    bf16: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Accuracy:
    """Test `net` in eval mode on batches (uint8 [B, 3, S, S], int64 [B]); its training flag is restored.

    With `world` > 1 every process gets the same `val`, takes every `world`-th batch, and returns the common result.
    Raises `ValueError` for an empty validation set.
    """
    training = net.training
    net.eval()
    layout = memory_format(net, device)
    counts = torch.zeros(3, num_classes, dtype=torch.float64, device=device)
    batches = val.batches() if isinstance(val, ValSet) else val
    for index, (images, labels) in enumerate(batches):
        if index % world != rank:
            continue
        inputs = normalization.apply(images.to(device)).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = net(inputs).float()
        labels = labels.to(device)
        hits = logits.topk(min(TOP, num_classes), dim=1).indices == labels[:, None]
        for row, value in zip(counts, (torch.ones_like(labels), hits[:, 0], hits.any(1))):
            row.index_add_(0, labels, value.double())
    net.train(training)
    if world > 1:
        dist.all_reduce(counts)
    return _accuracy(counts.cpu())


def _accuracy(counts: Tensor) -> Accuracy:
    seen, first, top = counts
    total = int(seen.sum())
    if total == 0:
        raise ValueError("the validation set is empty")
    return Accuracy(float(first.sum()) / total, float(top.sum()) / total, tuple((first / seen).tolist()), total)
