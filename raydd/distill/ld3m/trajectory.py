"""Trajectory matching (MTT, arXiv 2203.11932) with gradients in constant memory: LD3M's third loss (spec section 4.3).

    theta_{i+1} = theta_i - alpha g_i,   g_i = grad CE(net(Aug_i(S_i)); theta_i),   i = 0 .. n-1
    L = |theta_n - phi|^2 / |theta_0 - phi|^2

A student starts at an expert's parameters theta_0 and should end at its later ones, phi. The n steps are run first,
keeping only the points theta_i (n vectors of P numbers). The gradient then visits the steps from last to first, each
with a graph of its own, carrying r = dL/d theta_{i+1}:

    r = 2 (theta_n - phi) / |theta_0 - phi|^2,   h = g_i . r
    dL/dalpha -= h,   dL/dS_i -= alpha dh/dS_i,   r -= alpha dh/d theta_i

- `adjoint` (ours): exactly this, the derivative of L.
- `tesla` (2211.10586): without the last update, so that each theta_i counts as a constant; -alpha r is then TESLA's
  u = dL/d(sum g). Its 2 is part of it: released code loses it and makes up for it by a larger rate.
- `unrolled`: plain autograd through all steps, in memory that grows with n; the oracle, and MTT's own way.

Augmentation is DSA with parameters per image and a group per step, as the experts are trained.
"""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.augment.dsa import Dsa, apply_dsa, draw_dsa
from raydd.keyed import numpy_rng
from raydd.models.flat import FlatNet

Gradient = Literal["adjoint", "tesla", "unrolled"]


@dataclass(frozen=True)
class Step:
    """One step of the student: which synthetic images it sees, int64 [b] without repetition, and their augmentation."""

    index: Tensor
    dsa: Dsa


@dataclass(frozen=True)
class Matched:
    """L [], and its gradient to the images [N, 3, S, S] and to alpha []; no graph."""

    loss: Tensor
    images: Tensor
    alpha: Tensor


def draw_steps(*key: object, count: int, batch: int | None, steps: int) -> list[Step]:
    """`steps` student steps over `count` images: chunks of `batch` of a permutation, then of a fresh one, and so on.

    No batch, or one of at least `count`, means all images in every step. The last chunk of a permutation may be
    smaller. Drawn from (*key, "order" or "dsa", step).
    """
    order, found = np.arange(0), []
    for step in range(steps):
        if batch is None or batch >= count:
            chunk = np.arange(count)
        else:
            if len(order) == 0:
                order = np.argsort(numpy_rng(*key, "order", step).random(count), kind="stable")
            chunk, order = order[:batch], order[batch:]
        found.append(Step(torch.from_numpy(chunk), draw_dsa(numpy_rng(*key, "dsa", step), len(chunk))))
    return found


def match_trajectory(
    net: FlatNet,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    steps: Sequence[Step],
    gradient: Gradient,
) -> Matched:
    """L and its gradients for a student that starts at `start` [P] and should end at `target` [P], another point.

    images: [N, 3, S, S], normalized; labels: int64 [N]; alpha: [], the student's rate; at least one step. All floats
    have one dtype, float32 or float64, and one device. The arguments are not changed, and get no `grad`.
    Raises `ValueError` for another gradient.
    """
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient {gradient!r}: expected one of {', '.join(get_args(Gradient))}")
    start, target, images, alpha = (t.detach() for t in (start, target, images, alpha))
    if gradient == "unrolled":
        return _unrolled(net, start, target, images, labels, alpha, steps)
    *points, end = _walk(net, start, images, labels, alpha, steps)
    residual = 2 * (end - target) / (start - target).square().sum()
    to_images, to_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
    for step in reversed(steps):
        along, by_batch, by_point = _back(net, points.pop(), step, images, labels, residual, gradient == "adjoint")
        to_alpha -= along
        to_images.index_add_(0, step.index.to(images.device), -alpha * by_batch)
        if by_point is not None:
            residual = residual - alpha * by_point
    return Matched(_distance(start, end, target), to_images, to_alpha)


def match_loss(
    net: FlatNet, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, steps: Sequence[Step]
) -> Tensor:
    """L [] alone, which needs the steps but none of the way back; arguments as in `match_trajectory`."""
    start, target, images, alpha = (t.detach() for t in (start, target, images, alpha))
    (end,) = collections.deque(_walk(net, start, images, labels, alpha, steps), maxlen=1)
    return _distance(start, end, target)


def _walk(
    net: FlatNet, start: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, steps: Sequence[Step]
) -> Iterator[Tensor]:
    """theta_0 to theta_n, each [P]: where a student is before every step and after the last; no graph."""
    point = start
    yield point
    for step in steps:
        point = point - alpha * _slope(net, point.detach().requires_grad_(), *_batch(step, images, labels))
        yield point


def _distance(start: Tensor, end: Tensor, target: Tensor) -> Tensor:
    """L []: how far a student is from where it should have come, over the whole way, both squared."""
    return (end - target).square().sum() / (start - target).square().sum()


def _back(
    net: FlatNet, point: Tensor, step: Step, images: Tensor, labels: Tensor, residual: Tensor, by_point: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """h = g . r of a step, and its gradients to the step's batch and, if asked for, to its point; then no graph."""
    batch, answers, dsa = _batch(step, images, labels)
    point = point.detach().requires_grad_()
    along = _slope(net, point, batch.requires_grad_(), answers, dsa, graph=True) @ residual
    if by_point:
        return along.detach(), *torch.autograd.grad(along, (batch, point))
    return along.detach(), *torch.autograd.grad(along, batch), None


def _unrolled(
    net: FlatNet, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, steps: Sequence[Step]
) -> Matched:
    point, images, alpha = (t.clone().requires_grad_() for t in (start, images, alpha))
    for step in steps:
        point = point - alpha * _slope(net, point, *_batch(step, images, labels), graph=True)
    loss = _distance(start, point, target)
    return Matched(loss.detach(), *torch.autograd.grad(loss, (images, alpha)))


def _batch(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Dsa]:
    index = step.index.to(images.device)
    return images[index], labels[index], step.dsa


def _slope(net: FlatNet, point: Tensor, images: Tensor, labels: Tensor, dsa: Dsa, graph: bool = False) -> Tensor:
    """g [P]: gradient of the mean cross-entropy to the parameters `point`; with a graph it can be differentiated."""
    loss = F.cross_entropy(net(point, apply_dsa(images, dsa)), labels)
    return torch.autograd.grad(loss, point, create_graph=graph)[0]
