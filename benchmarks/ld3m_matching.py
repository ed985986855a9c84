"""LD3M's losses: the three gradients of trajectory matching on real experts, and what losses cost beside the generator.

- Gradients: the adjoint (exact, constant memory), TESLA and unrolling, for 50 real digits at the experts' own points.
  Cosines are to unrolling in float64; memory is the most bytes of tensors alive. Every round draws another expert,
  start, and augmentation, and all gradients take turns in it.
- Equal time: pixels of 10 digits learned with the adjoint and with TESLA for the same seconds; the loss on trajectories
  and augmentations that neither met.
- Costs: an iteration's loss and its gradient per synthetic image, at IPC 10 (and 1), with the literature's ConvNet-3.
"""

import dataclasses
import statistics
from collections.abc import Callable

import torch
from machine import timed_rounds
from memory import live_peak
from torch import Tensor
from torch.nn.functional import cosine_similarity

from raydd.data.source import open_source
from raydd.data.tensors import ImageSet, load_images
from raydd.distill.ld3m.along import TrajectoryMatching
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PixelGenerator
from raydd.distill.ld3m.loop import Descent, State
from raydd.distill.ld3m.objective import ClassMatching, Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.rates import calibrate
from raydd.distill.ld3m.trajectory import Matched, draw_steps, match_trajectory
from raydd.keyed import torch_rng
from raydd.models.flat import FlatNet
from raydd.models.normalization import Normalization
from raydd.models.registry import build_model
from raydd.train.experts import ExpertRecipe, expert_net, train_expert

SIZE = 28
WIDTH = 32
EXPERTS = 2
CLASSES = tuple("0123456789")
STEPS = (10, 20)
GRADIENTS = ("adjoint", "tesla", "unrolled")
MEAN, STD = (0.31,) * 3, (0.35,) * 3


@dataclasses.dataclass(frozen=True)
class Experts:
    """Two small ones, trained here for the epochs that matching reads, and the digits they saw."""

    net: FlatNet
    snapshots: list[Tensor]
    digits: ImageSet
    device: str

    @classmethod
    def train(cls, device: str, epochs: int = 3) -> "Experts":
        digits = load_images(open_source("digits"), SIZE)
        recipe = ExpertRecipe("convnet3", SIZE, len(CLASSES), epochs=epochs, width=WIDTH, batch=64)
        snapshots = [
            train_expert(
                digits.images, digits.labels, recipe, index, normalization=Normalization(MEAN, STD), device=device
            )
            for index in range(EXPERTS)
        ]
        net = expert_net(recipe)
        net.net.to(device)
        return cls(net, snapshots, digits, device)

    def images(self, ipc: int) -> tuple[Tensor, Tensor]:
        """The first `ipc` digits of each class in key order, normalized, and their labels."""
        rows = [torch.where(self.digits.labels == label)[0][:ipc] for label in range(len(CLASSES))]
        chosen = torch.cat(rows)
        pixels = self.digits.images[chosen].float() / 255
        return Normalize(MEAN, STD)(pixels).to(self.device), self.digits.labels[chosen].to(self.device)


def measure_gradients(experts: Experts, repeats: int, now: Callable[[], float]) -> list[dict[str, object]]:
    """Print and return seconds, memory and cosine of the gradients at 10 and 20 steps of the student."""
    images, labels = experts.images(5)
    print(f"\nMTT gradients, {len(images)} images of {SIZE} px, ConvNet-3 of width {WIDTH}, alpha 0.01")
    print(f"{'steps':>5} {'gradient':<10}{'s':>8}{'/ unrolled':>12}{'MB':>8}{'/ unrolled':>12}{'1 - cosine':>12}")
    found = []
    for call in _gradients(experts, images, labels, 1, 0, {}).values():
        call()
    for count in STEPS:
        seconds, away = ({mode: [] for mode in GRADIENTS} for _ in range(2))
        for draw in range(repeats):
            made: dict[str, Matched] = {}
            calls = _gradients(experts, images, labels, count, draw, made)
            for mode, (value,) in timed_rounds(calls, 1, now, warm=True).items():
                seconds[mode].append(value)
            exact: dict[str, Matched] = {}
            _gradients(experts, images, labels, count, draw, exact, torch.float64)["unrolled"]()
            for mode in GRADIENTS:
                away[mode].append(_away(made[mode].images, exact["unrolled"].images))
        megabytes = {mode: live_peak(calls[mode], experts.device) / 1e6 for mode in GRADIENTS}
        for mode in GRADIENTS:
            row = dict(
                steps=count,
                gradient=mode,
                seconds=statistics.median(seconds[mode]),
                time_over_unrolled=statistics.median(a / b for a, b in zip(seconds[mode], seconds["unrolled"])),
                mb=megabytes[mode],
                memory_over_unrolled=megabytes[mode] / megabytes["unrolled"],
                one_minus_cosine=statistics.median(away[mode]),
                one_minus_cosine_worst=max(away[mode]),
            )
            found.append(row)
            print(
                f"{count:>5} {mode:<10}{row['seconds']:>8.2f}{row['time_over_unrolled']:>12.2f}{row['mb']:>8.0f}"
                f"{row['memory_over_unrolled']:>12.2f}{row['one_minus_cosine']:>12.1e}",
                flush=True,
            )
    return found


def _gradients(
    experts: Experts,
    images: Tensor,
    labels: Tensor,
    count: int,
    draw: int,
    made: dict[str, Matched],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Callable[[], None]]:
    """Calls that leave their results in `made`."""
    snapshots = experts.snapshots[draw % EXPERTS].to(experts.device, dtype)
    start = draw % 2
    steps = draw_steps("ld3m", "mtt", draw, count=len(images), batch=None, steps=count)
    alpha = torch.tensor(0.01, dtype=dtype, device=experts.device)
    given = (experts.net, snapshots[start], snapshots[start + 2], images.to(dtype), labels, alpha, steps)
    return {mode: lambda mode=mode: made.update({mode: match_trajectory(*given, mode)}) for mode in GRADIENTS}


def _away(found: Tensor, true: Tensor) -> float:
    return 1 - float(cosine_similarity(found.double().flatten(), true.flatten(), dim=0))


def measure_equal_time(experts: Experts, ratio: float, iterations: int, now: Callable[[], float]) -> dict[str, object]:
    """Print and return held-out losses after `iterations` with the adjoint, and as long with TESLA.

    ratio: seconds of an iteration of TESLA over one of the adjoint.
    """
    pack = Pack(CLASSES, tuple(range(len(CLASSES))), len(CLASSES), 1, 0)
    normalized, _ = experts.images(1)
    mean, std = (torch.tensor(value, device=normalized.device)[:, None, None] for value in (MEAN, STD))
    z = 2 * (normalized * std + mean) - 1
    judge = _along(experts, pack, Ld3mConfig(loss="mtt", experts="here", heldout=8, student_steps=STEPS[-1]))
    found: dict[str, object] = {"start": judge.heldout(normalized)}
    for mode, count in (("adjoint", iterations), ("tesla", round(iterations / ratio))):
        config = Ld3mConfig(
            generator="pixels",
            learn="latent",
            loss="mtt",
            experts="here",
            mtt_gradient=mode,
            student_steps=STEPS[-1],
            iterations=count,
            heldout=0,
        )
        generator = PixelGenerator(SIZE, experts.device)
        objective = _along(experts, pack, config)
        descent = Descent(generator, objective, Normalize(MEAN, STD), pack, config)
        rates = calibrate(descent, z, None)
        begun = now()
        state = descent.run(State(0, z, None), rates)
        seconds = now() - begun
        with torch.no_grad():
            images = Normalize(MEAN, STD)(generator.pixels(state.z, None, state.z))
        judge.restore(objective.state())
        found |= {mode: judge.heldout(images), f"{mode}_iterations": count, f"{mode}_seconds": seconds}
    print(
        f"\nequal time, {STEPS[-1]} steps, held-out loss {found['start']:.4f} at the start: "
        f"adjoint {found['adjoint']:.4f} after {found['adjoint_iterations']} iterations in "
        f"{found['adjoint_seconds']:.1f} s, TESLA {found['tesla']:.4f} after {found['tesla_iterations']} in "
        f"{found['tesla_seconds']:.1f} s",
        flush=True,
    )
    return found


def _along(experts: Experts, pack: Pack, config: Ld3mConfig) -> TrajectoryMatching:
    load = lambda index: experts.snapshots[index].__getitem__  # noqa: E731
    return TrajectoryMatching(pack, experts.net, load, EXPERTS, config, experts.device)


def measure_losses(generator_ms: float | None, repeats: int, device: str, now: Callable[[], float]) -> dict[str, float]:
    """Print and return ms per synthetic image of a loss and its gradient. generator_ms: the generator's own."""
    found = {}
    reals = [torch.randint(0, 256, (256, 3, SIZE, SIZE), generator=torch_rng("ld3m", "reals")).byte()]
    calls: dict[str, Callable[[], object]] = {}
    counts = {}
    for loss in ("dm", "dc"):
        for ipc in (10, 1):
            pack = Pack(("0",), (0,), len(CLASSES), ipc, 0)
            objective = ClassMatching(pack, reals, "convnet3", Ld3mConfig(loss=loss), Normalize(MEAN, STD), device)
            images = torch.randn(ipc, 3, SIZE, SIZE, generator=torch_rng("ld3m", "synthetic")).to(device)
            name = f"{loss} IPC {ipc}"
            calls[name], counts[name] = (lambda o=objective, i=images: o(0, i)), ipc
    calls["mtt 10 steps"], counts["mtt 10 steps"] = _mtt_call(device), len(CLASSES)
    seconds = timed_rounds(calls, repeats, now)
    print(f"\n{'loss':<14}{'ms per image':>14}{'/ generator':>13}")
    for name, values in seconds.items():
        found[name] = 1e3 * statistics.median(values) / counts[name]
        share = f"{found[name] / generator_ms:>13.2f}" if generator_ms else ""
        print(f"{name:<14}{found[name]:>14.1f}{share}", flush=True)
    return found


def _mtt_call(device: str) -> Callable[[], object]:
    """MTT at the width that DM and DC have; its cost does not depend on what is in the parameters."""
    net = FlatNet(build_model("convnet3", num_classes=len(CLASSES), image_size=SIZE, norm="instance").eval().to(device))
    points = torch.stack([net.parameters() * (1 + 0.01 * at) for at in range(4)])
    config = Ld3mConfig(loss="mtt", experts="here", heldout=0)
    pack = Pack(CLASSES, tuple(range(len(CLASSES))), len(CLASSES), 1, 0)
    objective = TrajectoryMatching(pack, net, lambda index: points.__getitem__, 1, config, device)
    images = torch.randn(len(pack), 3, SIZE, SIZE, generator=torch_rng("ld3m", "synthetic")).to(device)
    return lambda: objective(0, images)
