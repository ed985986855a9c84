"""Cost and memory of exact per-image gradient norms beside the alternatives, on three networks.

Variants: ours (hooks), a batch-1 autograd loop, torch.func.vmap, BackPACK (BatchL2Grad) and Opacus (GradSampleModule),
each in eval mode on the same batch; the last three are skipped with their reason where they cannot run the network.
Cost is in forwards (no gradients) of the same batch, whole or in parts of 16, whichever is faster. Memory is the peak
above the loaded network and images, in a fresh process per variant, divided by that of one ordinary backward of the
same batch. Agreement is with a batch-1 loop in float64: of the float32 norms, and of the same engine in float64.

    python benchmarks/gradnorm.py [--nets convnet3,resnet18-64,resnet18-224] [--repeats 3]
"""

import argparse
import copy
import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import finish, machine, timed_together
from torch import Tensor, nn

from raydd.keyed import torch_rng
from raydd.models.convnet import ConvNet
from raydd.models.torchvisions import torchvision_models
from raydd.score.gradnorm import GradNorm

NETS = {
    "convnet3": (lambda: ConvNet(3, 10, 32), 32, 64),
    "resnet18-64": (lambda: torchvision_models().resnet18(num_classes=10), 64, 32),
    "resnet18-224": (lambda: torchvision_models().resnet18(num_classes=10), 224, 8),
}
PEERS = ("loop", "vmap", "backpack", "opacus")
Norms = Callable[[Tensor, Tensor], Tensor]


def load(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Network with fixed random weights in eval mode, and its batch."""
    build, size, batch = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build().eval()
    x = torch.randn(batch, 3, size, size, generator=torch_rng(0, name))
    return net, x, torch.arange(batch) % 10


def summed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def backward(net: nn.Module) -> Norms:
    """One ordinary backward of the batch: the yardstick of memory, no norms."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = summed(net(x), y)
        loss.backward()
        return loss.detach()

    return run


@torch.no_grad()
def parts(net: nn.Module, x: Tensor, rows: int = 16) -> None:
    for part in x.split(rows):
        net(part)


def loop(net: nn.Module) -> Norms:
    def run(x: Tensor, y: Tensor) -> Tensor:
        norms = []
        for i in range(len(x)):
            gradients = torch.autograd.grad(summed(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters()))
            norms.append(sum(g.square().sum() for g in gradients).sqrt())
        return torch.stack(norms)

    return run


def vmapped(net: nn.Module, chunk_bytes: int = 256 << 20) -> Norms:
    """torch.func, with as many per-sample gradients at once as our engine may take scratch."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    size = sum(p.numel() * p.element_size() for p in parameters.values())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return summed(torch.func.functional_call(net, parameters, (image[None],)), label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        return sum(g.square().sum() for g in torch.func.grad(loss)(parameters, image, label).values()).sqrt()

    return torch.func.vmap(norm, chunk_size=max(1, chunk_bytes // size))


def backpack(net: nn.Module) -> Norms:
    from backpack import backpack as recording
    from backpack import extend
    from backpack.extensions import BatchL2Grad

    net, loss = extend(_out_of_place(net), use_converter=False), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run(x: Tensor, y: Tensor) -> Tensor:
        net.zero_grad(set_to_none=True)
        with recording(BatchL2Grad()):
            loss(net(x), y).backward()
        return sum(p.batch_l2 for p in net.parameters()).sqrt()

    return run


def opacus(net: nn.Module) -> Norms:
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(_out_of_place(net), loss_reduction="sum", strict=False)

    def run(x: Tensor, y: Tensor) -> Tensor:
        wrapped.zero_grad(set_to_none=True)
        summed(wrapped(x), y).backward()
        norms = sum(p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()).sqrt()
        wrapped.zero_grad(set_to_none=True)
        return norms

    return run


def _out_of_place(net: nn.Module) -> nn.Module:
    """Module backward hooks, which both peers use, fail on in-place activations."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


VARIANTS: dict[str, Callable[[nn.Module], Norms]] = {
    "ours": GradNorm,
    "backward": backward,
    "loop": loop,
    "vmap": vmapped,
    "backpack": backpack,
    "opacus": opacus,
}


def peak_bytes(name: str, variant: str) -> int:
    """Peak memory of a variant above the loaded network and batch, after a warm-up on two images, in this process."""
    net, x, y = load(name)
    run = VARIANTS[variant](net)
    run(x[:2], y[:2])
    net.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run(x, y)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def peak_of(name: str, variant: str, threads: int) -> int:
    """`peak_bytes` in a fresh process, the least of two: allocators keep what earlier work left."""
    command = [sys.executable, __file__, "--peak", name, variant, "--threads", str(threads)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    return min(int(output.split()[-1]) for output in outputs)


def compare(name: str, repeats: int, threads: int, skip: tuple[str, ...]) -> dict[str, object]:
    """Print one table; return the figures of one network."""
    net, x, y = load(name)
    engine = GradNorm(net)
    calls = {"forward": torch.no_grad()(functools.partial(net, x)), "in parts": functools.partial(parts, net, x)}
    calls |= {"backward": functools.partial(backward(net), x, y), "ours": functools.partial(engine, x, y)}
    skipped = dict.fromkeys(skip, "not asked for")
    for peer in PEERS:
        if peer not in skipped:
            try:
                run = VARIANTS[peer](net)
                gap = (run(x[:2], y[:2]) - engine(x[:2], y[:2])).abs() / engine(x[:2], y[:2])
                assert float(gap.max()) < 1e-3, f"other norms than ours, by up to {float(gap.max()):.1%}"
                calls[peer] = functools.partial(run, x, y)
            except Exception as error:
                skipped[peer] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    seconds = timed_together(calls, repeats)
    seconds["forward"] = min(seconds["forward"], seconds.pop("in parts"))
    peaks = {variant: peak_of(name, variant, threads) for variant in seconds if variant != "forward"}

    found = engine(x, y).double()
    truth = loop(net.double())(x.double(), y)
    error = (found - truth).abs() / truth
    error64 = (GradNorm(net)(x.double(), y) - truth).abs() / truth
    print(f"\n{name}, batch {len(x)}, fallback {engine.fallback}")
    print(f"{'variant':<10}{'ms':>10}{'forwards':>10}{'peak MB':>10}{'/ backward':>12}")
    for variant, value in seconds.items():
        peak = peaks.get(variant)
        memory = "" if peak is None else f"{peak / 1e6:>10.0f}{peak / peaks['backward']:>12.2f}"
        print(f"{variant:<10}{1e3 * value:>10.1f}{value / seconds['forward']:>10.2f}{memory}")
    for peer, reason in skipped.items():
        print(f"{peer:<10} skipped: {reason}")
    print(f"relative error to float64: {float(error.max()):.1e} (float64 engine {float(error64.max()):.1e})")
    return dict(
        net=name,
        batch=len(x),
        forwards={variant: round(value / seconds["forward"], 3) for variant, value in seconds.items()},
        peak_mb={variant: round(peak / 1e6, 1) for variant, peak in peaks.items()},
        cost_in_forwards=seconds["ours"] / seconds["forward"],
        vs_vmap=seconds["vmap"] / seconds["ours"] if "vmap" in seconds else None,
        peak_memory_ratio=peaks["ours"] / peaks["backward"],
        max_rel_error=float(error.max()),
        max_rel_error_float64=float(error64.max()),
        skipped=skipped,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", default="", help="variants to leave out, separated by commas")
    parser.add_argument("--peak", nargs=2, metavar=("NET", "VARIANT"), help="print one variant's peak bytes and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.peak:
        print(peak_bytes(*options.peak))
        return
    print(machine())
    skip = tuple(filter(None, options.skip.split(",")))
    rows = [compare(name, options.repeats, options.threads, skip) for name in options.nets.split(",")]
    ratios = [row["vs_vmap"] for row in rows if row["vs_vmap"] is not None]
    print()
    finish(
        "gradnorm",
        cost_in_forwards=max(row["cost_in_forwards"] for row in rows),
        vs_vmap=min(ratios) if ratios else None,
        peak_memory_ratio=max(row["peak_memory_ratio"] for row in rows),
        max_rel_error=max(row["max_rel_error"] for row in rows),
        nets=rows,
    )


if __name__ == "__main__":
    main()
