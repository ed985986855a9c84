"""What it is worth that a process which computes on a CPU keeps its freed memory (`raydd.runtime.heap`).

Training steps and forwards of ConvNet-3s, batch 256, each in processes with and without, which take turns. Time is CPU
time, memory the most that a process had resident; ratios are with over without, each round's and their median.

    python benchmarks/heap.py [--rounds 3] [--steps 6]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import finish, machine
from processes import peak_mb

from raydd.keyed import torch_rng
from raydd.models.convnet import ConvNet
from raydd.runtime import heap

# What is done, channels, pixels.
WORK = ("train-64-16", "train-64-32", "train-128-32", "forward-128-32")


def measure(work: str, keep: bool, steps: int) -> None:
    """Print CPU seconds of a step, how much of them the system took, and the peak in MB, in this process."""
    torch.set_num_threads(1)
    if keep and not heap.keep_freed():
        sys.exit("this C library, or MALLOC_... or GLIBC_TUNABLES in the environment, does not let memory be kept")
    kind, width, size = work.split("-")
    torch.manual_seed(0)
    net = ConvNet(3, 10, int(size), width=int(width))
    x = torch.randn(256, 3, int(size), int(size), generator=torch_rng(0, work))
    y = torch.arange(256) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def step() -> None:
        with torch.set_grad_enabled(kind == "train"):
            loss = F.cross_entropy(net(x), y)
        if kind == "train":
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for _ in range(2):
        step()
    begun, system = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(steps):
        step()
    seconds = time.process_time() - begun
    system = resource.getrusage(resource.RUSAGE_SELF).ru_stime - system
    print(seconds / steps, system / seconds, peak_mb(os.getpid()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], args.measure[1] == "True", args.steps)
        return
    torch.set_num_threads(1)
    print(machine())
    figures = {}
    for work in WORK:
        times, peaks, shares = [], [], []
        for _ in range(args.rounds):
            told = {}
            for keep in (False, True):
                command = [sys.executable, Path(__file__), "--steps", str(args.steps), "--measure", work, str(keep)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                told[keep] = [float(figure) for figure in done.stdout.split()]
            times.append(told[True][0] / told[False][0])
            peaks.append(told[True][2] / told[False][2])
            shares.append(told[False][1])
        time_ratio, peak_ratio = statistics.median(times), statistics.median(peaks)
        name = work.replace("-", "_")
        figures |= {
            f"time_{name}": time_ratio,
            f"times_{name}": [round(ratio, 3) for ratio in times],
            f"memory_{name}": peak_ratio,
            f"system_share_without_{name}": statistics.median(shares),
        }
        print(f"{work}: time {time_ratio:.3f}, peak {peak_ratio:.3f} of without", flush=True)
    finish("heap", **figures)


if __name__ == "__main__":
    main()
