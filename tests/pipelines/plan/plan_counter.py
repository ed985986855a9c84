"""What a distillation really does, counted while it runs, beside what its plan says: rows and calls by operation."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from raydd.data import decode
from raydd.distill.dsco.features import FeatureNet
from raydd.distill.infoutil import scorer
from raydd.distill.ld3m import along, objective
from raydd.models.prior.autoencoder import Latents, Pixels
from raydd.models.prior.opened import OpenedPrior
from raydd.pipelines.distill import distill
from raydd.pipelines.plan.cost import Amount, add
from raydd.pipelines.plan.make import Plan, PlanOptions, plan
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")
COUNTS_ONLY = PlanOptions(calibrate=False)
OUTPUTS = 3


def planned(options, method, how: PlanOptions = COUNTS_ONLY) -> Plan:
    return plan(options, method, LOCAL, how)


def rows(found: Plan) -> Counter:
    """Rows by kind, and for reading by size."""
    total = Counter()
    for op, amount in work_of(found).items():
        total[f"read {op.of}" if op.kind == "read" else op.kind] += amount.rows
    return +total


def calls(found: Plan, kind: str) -> int:
    return sum(amount.calls for op, amount in work_of(found).items() if op.kind == kind)


def work_of(found: Plan) -> dict[object, Amount]:
    return add([stage.total() for stage in found.stages])


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Rows by kind of everything that runs inside; `denoise_calls` are calls of the denoiser."""
    seen = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def watch(owner, name: str, kind: str, size) -> None:
            real = getattr(owner, name)

            def watched(*args, **options):
                seen[kind] += size(*args)
                return real(*args, **options)

            patch.setattr(owner, name, watched)

        # Before a call is made: one that is computed again stops inside, as soon as it has what is missing.
        watch(OpenedPrior, "_run", "denoise", lambda prior, x, *_: len(x))
        watch(OpenedPrior, "_run", "denoise_calls", lambda *_: 1)
        watch(OpenedPrior, "encode", "encode", lambda prior, images, *_: len(images))
        for space in (Pixels, Latents):
            watch(space, "decode", "paint", lambda space, latents: len(latents))
        watch(FeatureNet, "forward", "feature", lambda net, x: len(x))
        watch(FeatureNet, "backward", "feature_back", lambda net, tape, grad: len(grad))
        watch(FeatureNet, "maps", "map", lambda net, x: len(x))
        watch(scorer, "cut", "cut", lambda *_: 1)
        watch(objective, "real_mean", "match_real", lambda net, real, dsa: len(real))
        watch(objective, "dm_to", "matched", lambda mean, net, synthetic, dsa: len(synthetic))
        watch(objective, "dc_loss", "matched", lambda net, real, synthetic, *_: len(real) + len(synthetic))
        watch(objective, "build_model", "match_net", lambda *_: 1)
        watch(along, "match_trajectory", "student", lambda net, a, b, images, labels, rate, steps, how: _student(steps))
        watch(along, "match_loss", "student_held", lambda net, a, b, images, labels, rate, steps: _student(steps))
        real_decode = decode._decode

        def decoded(data, size, *more):
            seen[f"read {size} px"] += 1
            return real_decode(data, size, *more)

        patch.setattr(decode, "_decode", decoded)

        def forward(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if isinstance(module, nn.Linear) and module.out_features == OUTPUTS:
                seen["classified"] += len(inputs[0])

        real_run = OpenedPrior._run

        def run(prior, x, *more):
            out = real_run(prior, x, *more)
            if out.requires_grad:
                out.register_hook(lambda grad: seen.update(denoise_back=len(grad)))
            return out

        patch.setattr(OpenedPrior, "_run", run)
        hook = nn.modules.module.register_module_forward_pre_hook(forward)
        try:
            yield seen
        finally:
            hook.remove()


def _student(steps) -> int:
    return sum(len(step.index) for step in steps)


def done(options, method) -> Counter:
    """Distill, and count; what was checked once in this process is not checked again."""
    with counting() as seen:
        distill(options, method, LOCAL)
    return +seen
