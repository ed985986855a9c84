"""Probes as in `probes.py` of what is matched: noise optimization's feature net, LD3M's matchers and students."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import nn

from raydd.augment.dsa import draw_dsa
from raydd.distill.dsco.datafree import FreeMatching
from raydd.distill.dsco.features import FeatureNet, feature_dtype
from raydd.distill.dsco.objective import Matching
from raydd.distill.dsco.optimize import minimize
from raydd.distill.dsco.targets import make_targets, noised_features
from raydd.distill.ld3m.matching import dc_loss, dm_to, real_mean
from raydd.distill.ld3m.trajectory import draw_steps, match_loss, match_trajectory
from raydd.keyed import numpy_rng
from raydd.models.registry import build_model
from raydd.pipelines.ld3m_work import matcher_of, student_of
from raydd.pipelines.plan.bench import Bench, Run
from raydd.pipelines.plan.cost import Op
from raydd.pipelines.plan.dsco import net_shape
from raydd.store.trajectories import open_experts

# A level in the middle of a chain, and updates or student steps per call.
LEVEL = (0.6, 0.8)
UPDATES = 2


def target(bench: Bench, op: Op) -> Run:
    net, nopt = _net(bench), bench.method.nopt
    options = {"rounds": nopt.rounds, "strata": nopt.strata, "key": ("plan",)}

    def run(rows: int) -> int:
        features = noised_features(net, bench.latents(max(2, rows // nopt.rounds)), LEVEL, **options)
        make_targets(features, min(bench.job.ipc, nopt.chunk))
        return len(features)

    return run


def nopt(bench: Bench, op: Op) -> Run:
    """Whole updates of the noise: both passes of the net, the sorted residual, the step."""
    net, config = _net(bench), dataclasses.replace(bench.method.nopt, iterations=UPDATES, stop="none")

    @functools.cache
    def objective(rows: int) -> Matching:
        targets = make_targets(net(bench.latents(max(2, rows))), rows)
        return Matching([net], [targets], bench.latents(rows), torch.tensor(0.5, device=bench.device), config)

    def run(rows: int) -> int:
        minimize(objective(rows), bench.latents(rows), config)
        return rows * UPDATES

    return run


def feature(bench: Bench, op: Op) -> Run:
    net = _net(bench)
    return lambda rows: len(net(bench.latents(rows)))


def templates(bench: Bench, op: Op) -> Run:
    net = _net(bench)

    def run(rows: int) -> int:
        with torch.no_grad():
            torch.std_mean(net.maps(bench.latents(rows)).flatten(2), (0, 2))
        return rows

    return run


def nopt_free(bench: Bench, op: Op) -> Run:
    config = bench.method.nopt
    net = None if config.features == "latent" else _net(bench)
    shape = 1, net_shape(bench.prior, config), 1
    statistics = [torch.full(shape, value, device=bench.device) for value in (0.0, 1.0)]

    def run(rows: int) -> int:
        std = torch.tensor(0.5, device=bench.device)
        FreeMatching(net, *statistics, bench.latents(rows), std, config)(bench.latents(rows))
        return rows

    return run


def _net(bench: Bench) -> FeatureNet:
    dtype = feature_dtype(bench.method.nopt.feature_precision, bench.device)
    return FeatureNet(bench.prior.latent_shape, "plan", device=bench.device, dtype=dtype)


def match_net(bench: Bench, op: Op) -> Run:
    def run(rows: int) -> int:
        for _ in range(rows):
            _matcher(bench)
        return rows

    return run


def match_real(bench: Bench, op: Op) -> Run:
    net = _matcher(bench)

    def run(rows: int) -> int:
        real_mean(net, _images(bench, rows), draw_dsa(numpy_rng("plan")))
        return rows

    return run


def match(bench: Bench, op: Op) -> Run:
    return _matched(bench, grad=True)


def match_held(bench: Bench, op: Op) -> Run:
    return _matched(bench, grad=False)


def _matched(bench: Bench, grad: bool) -> Run:
    """The loss of one class against the real side's mean (DM), or with its real side (DC), and its gradient."""
    net, learn, dsa = _matcher(bench), bench.method.learn, draw_dsa(numpy_rng("plan"))
    mean = real_mean(net, _images(bench, 2), dsa) if learn.loss == "dm" else None

    def run(rows: int) -> int:
        real = 0 if mean is not None else min(learn.real_batch, max(1, rows - 1))
        images = _images(bench, max(1, rows - real)).requires_grad_(grad)
        with torch.set_grad_enabled(grad or mean is None):
            if mean is not None:
                loss = dm_to(mean, net, images, dsa)
            else:
                loss = dc_loss(net, _images(bench, real), images, 0, dsa, distance=learn.distance)
        if grad:
            torch.autograd.grad(loss, images)
        return len(images) + real

    return run


def _images(bench: Bench, rows: int) -> torch.Tensor:
    return bench.normal(rows, 3, bench.job.size, bench.job.size)


def _matcher(bench: Bench) -> nn.Module:
    arch, size = matcher_of(bench.method.learn, bench.job.size), bench.job.size
    return build_model(arch, num_classes=len(bench.job.classes), image_size=size, norm="instance").to(bench.device)


def student(bench: Bench, op: Op) -> Run:
    return _walked(bench, functools.partial(match_trajectory, gradient=bench.method.learn.mtt_gradient))


def student_held(bench: Bench, op: Op) -> Run:
    return _walked(bench, match_loss)


def _walked(bench: Bench, match: Callable[..., object]) -> Run:
    """Steps of a student along an expert's way, which `match` takes."""
    learn = bench.method.learn
    net = student_of(open_experts(learn.experts))
    net.net.to(bench.device)
    start, rate = net.parameters(), torch.tensor(learn.student_lr, device=bench.device)

    def run(rows: int) -> int:
        steps = draw_steps("plan", count=rows, batch=None, steps=UPDATES)
        labels = torch.zeros(rows, dtype=torch.int64, device=bench.device)
        match(net, start, 1.01 * start, _images(bench, rows), labels, rate, steps)
        return rows * UPDATES

    return run


PROBES = {
    "target": target,
    "nopt": nopt,
    "feature": feature,
    "map": templates,
    "nopt_free": nopt_free,
    "match_net": match_net,
    "match_real": match_real,
    "match": match,
    "match_held": match_held,
    "student": student,
    "student_held": student_held,
}
