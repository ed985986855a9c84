"""Speed of our noise optimization against the authors' schedule, as time to the same matching loss.

The literal schedule is 200 iterations of SGD (0.1, momentum 0.9) from the same drawn noise, PyTorch's autograd through
the whole feature net and the sort, default memory layout, one class at a time. Both see the same targets, mean,
deviation and start; the curve of each is timed per iteration, and the loss to reach is the one that the literal
schedule ends with, at every measured step on its own (the literal's own time is when its curve first gets there). With
one thread the clock is CPU seconds of this process, so neighbors do not count. Data are Gaussian fields, whose prior is
known exactly (tests/distill/dsco/toy_prior.py); samples follow a coarse plain run to each step.

    python benchmarks/nopt.py [--shape 4,32,32] [--ipc 10] [--steps 45,25,5] [--preset dsco|dsco-fast]
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import clock, finish, machine
from torch import Tensor

from raydd.distill.dsco.config import PRESETS, DscoConfig
from raydd.distill.dsco.features import GROUPS, SLOPE, feature_dtype
from raydd.distill.dsco.loop import Task
from raydd.distill.dsco.nopt import feature_nets, targets_at
from raydd.distill.dsco.objective import Matching, norm_gap
from raydd.distill.dsco.optimize import minimize
from raydd.keyed import torch_rng
from raydd.models.prior.step import posterior

sys.path.append(str(Path(__file__).parents[1] / "tests" / "distill" / "dsco"))
from toy_prior import GaussianPrior

KAPPA = 1.024


@dataclasses.dataclass
class Curve:
    """Loss before every iteration with the seconds until it was known, and what the run ended with."""

    losses: list[float]
    seconds: list[float]
    final: float
    norm: float

    def reach(self, loss: float) -> tuple[float, int] | None:
        """Seconds and iterations until the loss is at most `loss`; None if it never is."""
        return next(((s, n) for n, (s, found) in enumerate(zip(self.seconds, self.losses)) if found <= loss), None)


def literal(matching: Matching, noise: Tensor) -> Curve:
    """The authors' inner loop as it stands."""
    net, target = matching.nets[0], matching.targets[0]
    layers = [(w.contiguous(), b) for w, b in net.convolutions] + [tuple(t.contiguous() for t in net.last[:2])]
    noise, count = noise.clone().requires_grad_(), len(noise)
    optimizer, losses, seconds, start = torch.optim.SGD([noise], lr=0.1, momentum=0.9), [], [], clock()
    for _ in range(200):
        a = matching.mean + matching.std * noise
        for layer, (w, b) in enumerate(layers):
            a = F.conv2d(a, w, b, padding=1) if not layer else F.conv2d(a, w, b, 2, 1, groups=GROUPS)
            a = F.leaky_relu(a, SLOPE) if layer < len(layers) - 1 else a
        z = (a.mean((2, 3)) - target.mean[0]) / target.std[0]
        gap = z.sort(0).values - target.quantiles[0]
        matched, off = gap.abs().sum() + gap.square().sum(), norm_gap(noise)
        loss = KAPPA / net.features * count * matched + off.abs().sum() + off.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(matched.detach()) / gap.numel())
        seconds.append(clock() - start)
    noise = noise.detach()
    return _ended(matching, losses, seconds, noise, start)


def ours(matching: Matching, judge: Matching, noise: Tensor) -> Curve:
    """The default inner loop on `matching`; what it ends with is judged in fp32."""
    losses, seconds, start = [], [], clock()

    def watched(noise: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = matching(noise)
        losses.append(float(loss))
        seconds.append(clock() - start)
        return loss, grad

    noise, _ = minimize(watched, noise, matching.config)
    return _ended(judge, losses, seconds, noise, start)


def _ended(judge: Matching, losses: list[float], seconds: list[float], noise: Tensor, start: float) -> Curve:
    end = clock() - start
    final = float(judge.loss(noise))
    return Curve([*losses, final], [*seconds, end], final, float(norm_gap(noise).abs().mean()))


def problems(shape: tuple[int, ...], ipc: int, steps: list[int], reals: int, config: DscoConfig):
    """For every wanted step: its index, the objective in fp32, that in the wanted precision, and the drawn noise."""
    prior, precise = GaussianPrior(shape, num_classes=1), dataclasses.replace(config, feature_precision="fp32")
    schedule, images, task = prior.schedule(config.steps), prior.reals(0, reals), Task("class0", 0, ipc, 0)
    nets = {c.feature_precision: feature_nets(prior, c, 0, "class0") for c in (config, precise)}
    labels = torch.zeros(ipc, dtype=torch.long)
    x = prior.draw(ipc, torch_rng(*task.key("start")))
    for i in reversed(range(min(steps), len(schedule))):
        mean, std = posterior(prior.denoise(x, schedule, i, labels), schedule, i)
        noise = prior.draw(ipc, torch_rng(*task.key("step", i)))
        if i in steps:
            found = [
                Matching(
                    nets[c.feature_precision],
                    targets_at(nets[c.feature_precision], images, schedule, i, task, c),
                    mean,
                    std,
                    c,
                )
                for c in (precise, config)
            ]
            yield i, *found, noise
        x = mean + std * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers: Callable[[str], list[int]] = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser.add_argument("--shape", type=numbers, default=[4, 32, 32], help="of the latent: channels,height,width")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=numbers, default=[45, 25, 5], help="of 50, at which both are run")
    parser.add_argument("--reals", type=int, default=100, help="real images of the class")
    parser.add_argument("--preset", choices=("dsco", "dsco-fast"), default="dsco")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = tuple(options.shape)
    config = PRESETS[options.preset]().at(shape)

    print(f"latent {shape}, IPC {options.ipc}, {options.reals} real images, {options.preset}, {machine()}")
    print(
        f"{'step':>4}{'loss at start':>15}{'literal':>10}{'ours':>8}{'literal s':>11}{'ours s to it':>14}"
        f"{'iterations':>12}{'ours s':>8}{'norm off':>15}"
    )
    ratios, slow, fast, missed, lines = [], 0.0, 0.0, [], []
    for i, precise, matching, noise in problems(shape, options.ipc, options.steps, options.reals, config):
        matching(noise)
        theirs, mine = literal(precise, noise), ours(matching, precise, noise)
        (their_seconds, _), reached = theirs.reach(theirs.final), mine.reach(theirs.final)
        seconds, iterations = reached or (mine.seconds[-1], None)
        missed += [] if reached else [i]
        ratios, slow, fast = [*ratios, mine.final / theirs.final], slow + their_seconds, fast + seconds
        lines.append(dict(step=i, literal=round(theirs.final, 4), ours=round(mine.final, 4), iterations=iterations))
        print(
            f"{i:>4}{theirs.losses[0]:>15.3f}{theirs.final:>10.4f}{mine.final:>8.4f}{their_seconds:>11.2f}"
            f"{seconds:>14.2f}{iterations or 'never':>12}{mine.seconds[-1]:>8.2f}"
            f"{theirs.norm:>8.3f}{mine.norm:>7.3f}",
            flush=True,
        )
    finish(
        "nopt",
        speedup_at_equal_loss=slow / fast,
        loss_ratio=sum(ratios) / len(ratios),
        steps_that_miss_the_loss=missed,
        shape=list(shape),
        ipc=options.ipc,
        preset=options.preset,
        iterations=config.iterations,
        precision=str(feature_dtype(config.feature_precision, "cpu")).removeprefix("torch."),
        per_step=lines,
    )


if __name__ == "__main__":
    main()
