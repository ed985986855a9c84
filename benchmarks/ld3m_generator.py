"""Cost and memory of LD3M's generator: one iteration of `Descent.gradients` whose loss is a given gradient.

Costs are in denoiser forwards. One unit is T forwards of the network without gradients on as many rows as the chain
gives it (twice the images under guidance: g = 2), and for a latent prior one forward of the decoder: gT denoiser and
d decoder forwards per image. Weights are random, and zero outputs of fresh networks are filled, since cost and memory
do not depend on them. Gradients of all variants are compared bit by bit.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import clock, timed_rounds
from memory import live_peak, resident_peak, saved_bytes
from torch import Tensor, nn

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PriorGenerator
from raydd.distill.ld3m.loop import Descent
from raydd.distill.ld3m.objective import Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.keyed import torch_rng
from raydd.models.prior.autoencoder import Latents, Pixels
from raydd.models.prior.networks import DiTShape, Shape, build_denoiser
from raydd.models.prior.opened import OpenedPrior, uses_bf16
from raydd.models.prior.schedule import read_table
from raydd.train.prior_recipe import preset

CLASSES = tuple("0123456789")
STEPS = (5, 10, 20, 40)
LATENT = 4


@dataclasses.dataclass(frozen=True)
class Net:
    """A denoiser on [channels, size, size], a preset's schedule, and the decoder's widths (none: pixel space)."""

    shape: Shape
    channels: int
    size: int
    schedule: str
    widths: tuple[int, ...] = ()


NETS = {
    # train-prior's `small`, gray images of 28 px.
    "unet": Net(preset("small").shape, 1, 28, "small"),
    # Latents of 16 x 16 for images of 32 px; the decoder takes about a tenth, as a large one beside a DiT-XL.
    "dit": Net(DiTShape(depth=4, heads=2), LATENT, 16, "dit-s", (32, 64)),
    # For a GPU: the `cifar` preset, and the sizes of DiT-XL/2 at 256 px with the decoder of Stable Diffusion.
    "unet-cifar": Net(preset("cifar").shape, 3, 32, "cifar"),
    "dit-xl": Net(DiTShape(depth=28, heads=18), LATENT, 32, "dit-s", (128, 256, 512, 512)),
}


@dataclasses.dataclass(frozen=True)
class Given:
    """An objective that costs nothing: its gradient is known."""

    gradient: Tensor

    def __call__(self, iteration: int, synthetic: Tensor) -> tuple[float, Tensor]:
        return 0.0, self.gradient


@dataclasses.dataclass(frozen=True)
class Bench:
    """A prior with random weights, and where `images` latents and conditions start."""

    name: str
    prior: OpenedPrior
    z: Tensor
    c: Tensor

    @classmethod
    def of(cls, name: str, images: int, device: str) -> "Bench":
        prior = random_prior(NETS[name], device)
        z = prior.draw(images, torch_rng("ld3m", "start")) / 2
        return cls(name, prior, z, prior.conditions(torch.arange(images) % len(CLASSES)))

    def generator(self, steps: int, keep: int = 0) -> PriorGenerator:
        config = Ld3mConfig(steps=steps, guidance=3.0, chunk=len(self.z))
        return PriorGenerator(self.prior, config, self.prior.image_size, keep)

    def iteration(self, steps: int, keep: int = 0, graph: str = "one", weights: bool = False) -> Callable[[], object]:
        """One iteration: its gradients to z and c. `weights`: the prior's weights get gradients too, as released."""
        generator = self.generator(steps, keep)
        config = dataclasses.replace(generator.config, graph=graph)
        names = tuple(f"image{i}" for i in range(len(self.z)))
        pack = Pack(names, tuple(i % len(CLASSES) for i in range(len(names))), len(CLASSES), 1, 0)
        gradient = torch.randn(len(names), 3, *(generator.image_size,) * 2, generator=torch_rng("ld3m", "toward"))
        objective = Given(gradient.to(self.prior.device))
        descent = Descent(generator, objective, Normalize((0.5,) * 3, (0.25,) * 3), pack, config)

        def run() -> tuple[Tensor | None, ...]:
            self.prior.net.requires_grad_(weights)
            gradients = descent.gradients(self.z, self.c, 0)[1]
            self.prior.net.requires_grad_(False).zero_grad(set_to_none=True)
            return gradients

        return run

    @torch.no_grad()
    def forwards(self, steps: int) -> None:
        """The unit: T forwards of the bare network on the rows of guided images."""
        rows = 2 * len(self.z)
        dtype = next(self.prior.net.parameters()).dtype
        x = torch.cat([self.z, self.z]).to(dtype)
        times = torch.full((rows,), 500, device=x.device)
        labels = torch.arange(rows, device=x.device) % (len(CLASSES) + 1)
        for _ in range(steps):
            self.prior.net(x, times, class_labels=labels, return_dict=False)

    @torch.no_grad()
    def decode(self) -> None:
        self.prior.paint(self.z)

    def graph(self, steps: int, keep: int) -> Tensor:
        """Pixels with their graph."""
        z, c = (t.clone().requires_grad_() for t in (self.z, self.c))
        return self.generator(steps, keep).pixels(z, c, torch.zeros_like(z))


def random_prior(net: Net, device: str) -> OpenedPrior:
    """A class-conditional prior with null label whose weights are all keyed noise; bfloat16 where that is usual."""
    recipe = preset(net.schedule)
    built = build_denoiser(
        net.shape, channels=net.channels, size=net.size, num_classes=len(CLASSES), seed=recipe.seed
    ).requires_grad_(False)
    generator = torch_rng("ld3m", "weights")
    for parameter in built.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02, generator=generator)
    dtype = torch.bfloat16 if uses_bf16("auto", device) else torch.float32
    table = {"_class_name": "DDPMScheduler", **recipe.scheduler()}
    return OpenedPrior(
        nn.Module.to(built, device, dtype),
        _random_space(net.widths, device) if net.widths else Pixels(net.channels),
        read_table(table, pixels=not net.widths),
        latent_size=net.size,
        labels=range(len(CLASSES)),
        null=len(CLASSES),
        num_classes=len(CLASSES),
        device=device,
    )


def _random_space(widths: tuple[int, ...], device: str) -> Latents:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2 if len(widths) > 2 else 1,
            latent_channels=LATENT,
        )
    return Latents(net.to(device))


def measure_cost(bench: Bench, steps: int, repeats: int) -> dict[str, object]:
    """Print and return what iterations cost, in units of gT denoiser forwards and d decoder forwards."""
    images, now = len(bench.z), clock_of(bench.prior.device)
    variants = {
        "one graph, all checkpoints": bench.iteration(steps),
        "one graph, steps kept": bench.iteration(steps, keep=steps),
        "two passes, all checkpoints": bench.iteration(steps, graph="two"),
        "two passes, steps kept": bench.iteration(steps, keep=steps, graph="two"),
        "two passes, weight gradients": bench.iteration(steps, graph="two", weights=True),
    }
    first, *others = (call() for call in variants.values())
    identical = all(torch.equal(a, b) for other in others for a, b in zip(first, other))
    calls = {"forwards": functools.partial(bench.forwards, steps), "decoder": bench.decode}
    for call in calls.values():
        call()
    seconds = timed_rounds(calls | variants, repeats, now, warm=True)
    decoders = seconds.pop("decoder") if bench.prior.image_size > bench.z.shape[-1] else [0.0] * repeats
    units = [forward + decoder for forward, decoder in zip(seconds["forwards"], decoders)]
    ratios = {name: [s / u for s, u in zip(seconds[name], units)] for name in variants}
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    share = statistics.median(d / u for d, u in zip(decoders, units))
    forward = statistics.median(seconds["forwards"]) / (2 * steps * images)
    print(
        f"\n{bench.name}, T = {steps}, {images} images, {1e3 * forward:.3f} ms per denoiser forward and image, "
        f"decoder {share:.0%} of the unit, gradients {'equal in all bits' if identical else 'DIFFER'}"
    )
    print(f"{'one iteration':<32}{'forwards / gT':>14}{'ms per image':>14}{'least to most':>18}")
    for variant, value in medians.items():
        spread = f"{min(ratios[variant]):.2f} to {max(ratios[variant]):.2f}"
        each = 1e3 * statistics.median(seconds[variant]) / images
        print(f"{variant:<32}{value:>14.2f}{each:>14.1f}{spread:>18}", flush=True)
    one, kept, two, _, released = (ratios[variant] for variant in variants)
    return dict(
        net=bench.name,
        images=images,
        forward_ms=1e3 * forward,
        decoder_share=round(share, 3),
        identical=identical,
        forwards_per_gT={variant: round(value, 3) for variant, value in medians.items()},
        speedup_vs_two_pass=statistics.median(b / a for a, b in zip(one, two)),
        speedup_kept_vs_two_pass=statistics.median(b / a for a, b in zip(kept, two)),
        speedup_vs_weight_gradients=statistics.median(b / a for a, b in zip(one, released)),
        iteration_ms_per_image=1e3 * statistics.median(seconds[next(iter(variants))]) / images,
    )


def measure_line(bench: Bench, repeats: int) -> dict[str, object]:
    """Print and return ms of an iteration with all checkpoints against T, and how straight; after `measure_cost`."""
    calls = {str(steps): bench.iteration(steps) for steps in STEPS}
    seconds = timed_rounds(calls, repeats, clock_of(bench.prior.device), warm=True)
    found = np.array([statistics.median(seconds[key]) for key in calls]) / len(bench.z)
    slope, start = np.polyfit(STEPS, found, 1)
    fitted = start + slope * np.array(STEPS)
    r2 = 1 - np.square(found - fitted).sum() / np.square(found - found.mean()).sum()
    off = float(np.abs(found / fitted - 1).max())
    times = ", ".join(f"{1e3 * value:.1f} at {steps}" for steps, value in zip(STEPS, found))
    print(f"ms per image against T: {times}; line: R2 {r2:.5f}, off by {off:.1%} at most", flush=True)
    return {"ms_per_image": [round(1e3 * float(value), 3) for value in found], "r2": float(r2), "off": off}


def measure_memory(name: str, images: int, device: str, threads: int) -> dict[str, object]:
    """Print and return peaks at T = 5 and 40, each in a fresh process."""
    both = []
    for steps in (STEPS[0], STEPS[-1]):
        line = [__file__, name, str(images), str(steps), device, str(threads)]
        # Memory that is given back at once, or what is free inside the heap would count as used or not by chance.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr)
        both.append(json.loads(done.stdout.splitlines()[-1]))
    low, high = both
    kinds = [kind for kind in low if kind != "latents"]
    ratios = {kind: high[kind] / low[kind] for kind in kinds}
    slope = (high["saved"] - low["saved"]) / (STEPS[-1] - STEPS[0]) / low["latents"]
    for kind in kinds:
        less, more = low[kind] / 1e6, high[kind] / 1e6
        print(f"{kind:<10} {less:>9.1f} MB at T = 5 {more:>9.1f} MB at 40, ratio {ratios[kind]:.3f}")
    print(f"saved per step: {slope:.2f} latents", flush=True)
    return {"ratios": ratios, "latents_per_step": slope, "bytes_T5": low, "bytes_T40": high}


def peaks(name: str, images: int, steps: int, device: str) -> dict[str, int]:
    """Bytes of one iteration, all steps checkpoints, and of the latents; what a fresh process measures.

    saved: what the graph keeps at the end of its pass, and one step, which is computed again and kept when its turn
    comes. resident: of the process (CPU only). live: of all tensors at one time, or CUDA's allocator.
    """
    bench = Bench.of(name, images, device)
    bench.iteration(1)()
    run = bench.iteration(steps)
    found = {
        "latents": bench.z.numel() * bench.z.element_size(),
        "saved": saved_bytes(functools.partial(bench.graph, steps, 1)),
        "live": live_peak(run, device),
    }
    return found if device.startswith("cuda") else found | {"resident": resident_peak(run)}


def clock_of(device: str) -> Callable[[], float]:
    """The usual clock, or wall time once the device is done."""

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now if device.startswith("cuda") else clock


if __name__ == "__main__":
    net, images, steps, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peaks(net, int(images), int(steps), device)))
