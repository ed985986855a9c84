"""LD3M: cost and memory of the generator, gradients of trajectory matching, and what the skip does to the latent's.

What is measured, and how, stands in ld3m_generator.py, ld3m_matching.py and ld3m_skip.py. In the JSON line:

- memory_T40_over_T5: peak memory of an iteration at 40 steps over that at 5, every call a checkpoint; the largest over
  the networks and over three independent ways to measure;
- forwards_per_gT: an iteration of one checkpointed graph in denoiser forwards, over g T (and the decoder's one);
  the largest over the networks. A forward, the forward again, and a backward that costs as much would be 3;
- speedup_vs_two_pass: over generating twice, as released; the least over the networks.

With one thread the clock is CPU seconds of this process, so neighbors do not count. With `--prior` the norm of the
latent's gradient is measured on a trained prior too, and with `--device cuda` on networks of a GPU's size.

    python benchmarks/ld3m.py [--prior DIR --data SRC] [--nets unet,dit] [--images 6] [--repeats 3] [--device cpu]
"""

import argparse
import os
import warnings
from typing import Any

import torch
from ld3m_generator import NETS, Bench, clock_of, measure_cost, measure_line, measure_memory
from ld3m_matching import Experts, measure_equal_time, measure_gradients, measure_losses
from ld3m_skip import measure_gaussian, measure_prior
from machine import finish, machine

PARTS = ("generator", "matching", "skip")


def measure_generator(nets: list[str], options: argparse.Namespace) -> dict[str, object]:
    """The figures of all networks, and the worst of each."""
    rows = []
    for name in nets:
        bench = Bench.of(name, options.images, options.device)
        row = measure_cost(bench, options.steps, options.repeats) | measure_line(bench, options.repeats)
        del bench
        rows.append(row | measure_memory(name, options.images, options.device, options.threads))
    first = next(iter(rows[0]["forwards_per_gT"]))
    return dict(
        memory_T40_over_T5=max(ratio for row in rows for ratio in row["ratios"].values()),
        forwards_per_gT=max(row["forwards_per_gT"][first] for row in rows),
        speedup_vs_two_pass=min(row["speedup_vs_two_pass"] for row in rows),
        linear_in_T_r2=min(row["r2"] for row in rows),
        linear_in_T_off=max(row["off"] for row in rows),
        identical=all(row["identical"] for row in rows),
        nets=rows,
    )


def measure_matching(generator_ms: float | None, options: argparse.Namespace) -> dict[str, object]:
    """Gradients of MTT, DM's, DC's and MTT's own cost."""
    now = clock_of(options.device)
    experts = Experts.train(options.device)
    rows = measure_gradients(experts, options.repeats, now)
    last = {row["gradient"]: row for row in rows[-3:]}
    ratio = last["tesla"]["seconds"] / last["adjoint"]["seconds"]
    equal = measure_equal_time(experts, ratio, options.iterations, now)
    return dict(
        adjoint_over_tesla_time=1 / ratio,
        adjoint_over_unrolled_memory=last["adjoint"]["memory_over_unrolled"],
        tesla_cosine=1 - last["tesla"]["one_minus_cosine"],
        adjoint_cosine=1 - last["adjoint"]["one_minus_cosine"],
        mtt=rows,
        mtt_equal_time=equal,
        loss_ms_per_image=measure_losses(generator_ms, options.repeats, options.device, now),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, of generator,matching,skip")
    parser.add_argument("--nets", help=f"of {', '.join(NETS)}; as the device's size allows unless given")
    parser.add_argument("--images", type=int, default=6, help="images that go through the prior together")
    parser.add_argument("--steps", type=int, default=10, help="T of the costs")
    parser.add_argument("--iterations", type=int, default=40, help="of MTT, for the adjoint's side of equal time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prior", help="a trained prior, for the norm of the latent's gradient")
    parser.add_argument("--data", default="digits", help="its real images")
    parser.add_argument("--classes", type=int, default=5, help="of them, one image each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    cuda = options.device.startswith("cuda")
    nets = (options.nets or ("unet-cifar,dit-xl" if cuda else "unet,dit")).split(",")
    chosen, figures, load = options.parts.split(","), {}, os.getloadavg()[0]
    print(f"{machine()}{', ' + torch.cuda.get_device_name() if cuda else ''}; {load:.1f} busy processes at the start")
    if "generator" in chosen:
        figures |= measure_generator(nets, options)
    if "matching" in chosen:
        milliseconds = figures["nets"][0]["iteration_ms_per_image"] if "nets" in figures else None
        figures |= measure_matching(milliseconds, options)
    if "skip" in chosen:
        figures["gain_gaussian"] = measure_gaussian()
        if options.prior:
            figures["norm_prior"] = measure_prior(options.prior, options.data, options.classes, 2, options.device)
    print()
    settings = {"images": options.images, "load_average": [load, os.getloadavg()[0]], "device": options.device}
    if cuda:
        settings |= {"device": torch.cuda.get_device_name(), "clock": "perf_counter"}
    finish("ld3m", **tidy(figures | settings))


def tidy(value: Any) -> Any:
    """All numbers inside with six digits."""
    if isinstance(value, dict):
        return {key: tidy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [tidy(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
