"""Ray Data scoring beside a plain threaded loop, with the same model on the same cores.

Three questions, each answered in fresh processes that take turns, as medians:

- steady state: images/s from the moment every worker has finished two shards until the first has nothing left, by Ray
  over by the plain loop (one thread per core, each of which reads, decodes, scores and commits shards of a common
  list). Two loads: `model` (32 px PNG, a ConvNet-3, features and exact gradient norms) and `decode` (320 px JPEG,
  features of a small ConvNet-3). Threads of one process wait for each other in Python's interpreter, processes do
  not: a ratio above 1 says so, and no more;
- first result: seconds from the call until the first shard is committed, Ray's own start included;
- memory: peak of the summed PSS of the driver and all processes below it (Ray's daemons, workers, shared memory), for
  ten times more images over that for the images.

    python benchmarks/stream.py [--repeats 3] [--images 16000]
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
import torch
from machine import finish, machine
from PIL import Image
from processes import descendants

from raydd.data.digits import CLASSES
from raydd.data.source import open_source, open_validation
from raydd.data.tensors import load_images
from raydd.models.checkpoint import ModelInfo, save_checkpoint
from raydd.models.registry import build_model
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.score import UNIT_ROWS, feature_scoring
from raydd.runtime.stream import ScoreStream, decode_unit
from raydd.runtime.work import Resources
from raydd.score.table import ScoreConfig
from raydd.store.run import Run

SIZE = 32
ROWS = UNIT_ROWS
CORES = os.cpu_count() or 1
# Load: side of the stored images, format, channels of the ConvNet-3, scores.
LOADS = {
    "model": (32, "PNG", 64, ("features", "gradnorm", "margin")),
    "decode": (320, "JPEG", 16, ("features",)),
}


def write_source(root: Path, load: str, images: int) -> str:
    """Class folders of `images` enlarged digits, the same ones again and again under new names."""
    side, kind, _, _ = LOADS[load]
    digits = load_images(open_validation("digits"), SIZE)
    pixels, labels = digits.images.permute(0, 2, 3, 1).numpy(), digits.labels.numpy()
    for label in range(len(CLASSES)):
        encoded = [_encode(image, side, kind) for image in pixels[labels == label]]
        folder = root / CLASSES[label]
        folder.mkdir(parents=True)
        for i in range(images // len(CLASSES)):
            (folder / f"{i:06d}.{kind.lower()}").write_bytes(encoded[i % len(encoded)])
    return str(root)


def _encode(image: np.ndarray, side: int, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def write_teacher(root: Path, load: str) -> str:
    """A ConvNet-3 with random weights."""
    width = LOADS[load][2]
    model = build_model("convnet3", num_classes=len(CLASSES), image_size=SIZE, width=width, seed=0)
    info = ModelInfo(arch="convnet3", image_size=SIZE, outputs=len(CLASSES), classes=CLASSES, width=width)
    save_checkpoint(str(root), "teacher", model, info)
    return str(root)


def plain(stream: ScoreStream, units: list, on_unit: Callable[[dict], None]) -> None:
    """One thread per core, each with its own model."""
    torch.set_num_threads(1)
    lock, waiting = threading.Lock(), iter(units)

    def work() -> None:
        score = stream.open("cpu")
        while True:
            with lock:
                unit = next(waiting, None)
            if unit is None:
                return
            row = score(decode_unit(unit, stream.size)).to_pylist()[0]
            with lock:
                on_unit(row)

    with ThreadPoolExecutor(CORES) as pool:
        for done in [pool.submit(work) for _ in range(CORES)]:
            done.result()


def measure(executor: str, load: str, data: str, teacher: str, memory: bool) -> dict[str, float]:
    """Score a source in this process, and below it."""
    with tempfile.TemporaryDirectory() as folder:
        job = open_job(DistillOptions(data=data, out=f"{folder}/run", teacher=teacher))
        units = open_source(data).units(ROWS)
        scoring = feature_scoring(job, ScoreConfig(scores=LOADS[load][3]))
        stream = ScoreStream(SIZE, ((Run(job.out), scoring.load),))
        times: list[tuple[float, int]] = []
        peak = Peak() if memory else None
        start = time.perf_counter()

        def on_unit(row: dict) -> None:
            times.append((time.perf_counter() - start, row["images"]))

        if executor == "plain":
            plain(stream, units, on_unit)
        else:
            from raydd.runtime import ray_stream

            ray_stream.stream_scores(stream, units, Resources(), on_unit)
        # The first shards come while workers still start, the last ones while some have nothing left to do.
        steady = times[2 * CORES : -CORES]
        seconds = steady[-1][0] - steady[0][0]
        found = {"rate": sum(images for _, images in steady[1:]) / seconds, "first_s": times[0][0]}
        return found | ({"peak": peak.stop()} if peak else {})


class Peak(threading.Thread):
    """The most memory that this process and all below it held, looked at twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.stopped = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.most = max(self.most, summed_pss())

    def stop(self) -> int:
        self.stopped.set()
        self.join()
        return self.most


def summed_pss() -> int:
    """Bytes of this process and all below it (Linux); shared pages count once."""
    total = 0
    for process in (os.getpid(), *(below.pid for below in descendants())):
        # A process that has just ended has no file, or an empty one.
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def in_process(*arguments: str) -> dict[str, float]:
    """`measure` in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--measure", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(load: str, images: int, repeats: int, folder: Path) -> dict[str, float]:
    """Rates and first results of both executors, taking turns."""
    data, teacher = write_source(folder / f"{load}-data", load, images), write_teacher(folder / f"{load}-teacher", load)
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ray": []}
    for turn in range(repeats):
        for executor in sorted(found, reverse=bool(turn % 2)):
            found[executor].append(in_process(executor, load, data, teacher))
    medians = {
        f"{executor}_{name}": statistics.median(run[name] for run in runs)
        for executor, runs in found.items()
        for name in ("rate", "first_s")
    }
    ratios = sorted(r["rate"] / p["rate"] for r, p in zip(found["ray"], found["plain"]))
    print(
        f"{load:8} plain {medians['plain_rate']:7.0f} images/s, Ray {medians['ray_rate']:7.0f} images/s, Ray over "
        f"plain {statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), first result "
        f"{medians['plain_first_s']:.1f} s and {medians['ray_first_s']:.1f} s",
        flush=True,
    )
    return medians | {"ratio": statistics.median(ratios)}


def grow(images: int, repeats: int, folder: Path) -> tuple[float, float]:
    """Peak bytes of Ray for a tenth of `images`, and for all."""
    teacher = write_teacher(folder / "memory-teacher", "decode")
    sources = {count: write_source(folder / f"memory-{count}", "decode", count) for count in (images // 10, images)}
    peaks = {
        count: statistics.median(
            in_process("ray", "decode", data, teacher, "--memory")["peak"] for _ in range(max(1, repeats // 2))
        )
        for count, data in sources.items()
    }
    small, large = peaks.values()
    counts = " and ".join(f"{peak / 2**20:.0f} MiB for {count} images" for count, peak in peaks.items())
    print(f"memory   {counts}: {large / small:.3f}", flush=True)
    return small, large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=16000, help="images of a run of the load `model`")
    parser.add_argument("--measure", nargs=4, metavar=("EXECUTOR", "LOAD", "DATA", "TEACHER"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, args.memory)))
        return
    torch.set_num_threads(1)
    print(f"{machine()}, ray {ray.__version__}; {os.getloadavg()[0]:.1f} busy processes at the start\n")
    with tempfile.TemporaryDirectory() as folder:
        model = compare("model", args.images, args.repeats, Path(folder))
        decode = compare("decode", args.images, args.repeats, Path(folder))
        small, large = grow(4 * args.images, args.repeats, Path(folder))
    print()
    finish(
        "stream",
        ray_over_plain=model["ratio"],
        first_result_s=model["ray_first_s"],
        memory_growth_10x=large / small,
        ray_over_plain_decode=decode["ratio"],
        images_per_second=model["ray_rate"],
        images_per_second_decode=decode["ray_rate"],
        peak_bytes=large,
        images=args.images,
        cores=CORES,
        load_average=round(os.getloadavg()[0], 2),
        ray=ray.__version__,
    )


if __name__ == "__main__":
    main()
