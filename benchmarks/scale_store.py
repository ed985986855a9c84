"""The parts of `scale.py` that need no cluster at work: a run of many classes begun again, and long listings.

Each part runs in a process of its own and prints its figures as one JSON line, last:

    python benchmarks/scale_store.py run CLASSES        the whole pipeline on one tiny image per class, local disk
    python benchmarks/scale_store.py begin CLASSES      the same under Ray with everything to do: the driver's memory
    python benchmarks/scale_store.py remote CLASSES     restart and manifest where every request takes 30 ms
    python benchmarks/scale_store.py listing IMAGES     listing and cutting a source, and finding what is scored

`remote` is a stand-in for an object store: fsspec's memory filesystem, whose calls wait; those for many files at once
take turns of 128 at a time, as s3fs has them under way.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
import unittest.mock
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem
from processes import peak_mb

from raydd.data import imagefolder
from raydd.data.listing import fingerprint
from raydd.data.source import Source
from raydd.distill.controls import ControlConfig
from raydd.pipelines.distill import distill, prepare
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Resources
from raydd.store import distilled, events, scores
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run

REQUEST_S, AT_ONCE = 0.03, 128
ROWS = 256
# Classes that a driver has seen committed when its memory is read.
SEEN = 100
# Up to so many classes every file is synced to the disk, as in earnest.
SYNCED = 1000


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A method that computes nothing: one image of a few bytes per class."""

    name: str = "nothing"
    config: ControlConfig = ControlConfig(labels="hard")

    @property
    def output(self) -> ControlConfig:
        return self.config

    def factor(self, size):
        return 1

    def check(self, job):
        pass

    def cost(self, job, label):
        return 1.0

    def scoring(self, job):
        return None

    def build(self, job, label, tables, teacher, work):
        return [DistilledImage(job.classes[label].encode(), "synthetic", ())]


def options(folder: Path, count: int, out: str) -> DistillOptions:
    """A request about a source of one tiny image per class, in one Parquet file."""
    names = [f"n{i:08d}" for i in range(count)]
    feature = {"names": names, "_type": "ClassLabel"}
    table = pa.table({"image": [name.encode() for name in names], "label": pa.array(range(count), pa.int64())})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), folder / "data" / "train.parquet")
    return DistillOptions(data=str(folder / "data"), out=out, ipc=1, size=32)


def again(request: DistillOptions) -> tuple[float, dict]:
    """Seconds that the same command takes once all is done, and its manifest."""
    start = time.perf_counter()
    manifest = distill(request, Nothing(), Resources())
    return time.perf_counter() - start, manifest


def commit_all(request: DistillOptions) -> float:
    """Commit every class as its unit does; seconds."""
    prepared = prepare(request, Nothing())
    run, names, start = Run(request.out), prepared.job.classes, time.perf_counter()
    for label, name in enumerate(names):
        if not prepared.units[label].is_done():
            image = DistilledImage(name.encode(), "synthetic", ())
            events.append(run, "unit_started", name=name)
            distilled.commit_class(run, label, names, [image], config_hash=prepared.units[label].config_hash, seed=0)
            events.append(run, "class_committed", name=name, images=1, seconds=0.0)
    return time.perf_counter() - start


def finish_all(request: DistillOptions) -> float:
    """Close the stage and write the first manifest; seconds of the manifest."""
    prepared = prepare(request, Nothing())
    start = time.perf_counter()
    prepared.write_manifest()
    took = time.perf_counter() - start
    prepared.end()
    return took


def run_part(folder: Path, count: int) -> dict:
    request = options(folder, count, str(folder / "run"))
    prepare(request, Nothing()).begin()
    with contextlib.ExitStack() as stack:
        if count > SYNCED:  # what a commit costs is known from fewer
            stack.enter_context(unittest.mock.patch("os.fsync"))
        seconds = commit_all(request)
    place = Path(request.out)
    size = sum(path.stat().st_size for path in place.rglob("images.parquet"))
    manifest_s = finish_all(request)
    restart_s, manifest = again(request)
    assert len(manifest["counts"]) == count
    return {
        "commit_ms": 1000 * seconds / count,
        "class_kb": size / count / 1000,
        "set_mb": size / 1e6,
        "manifest_s": manifest_s,
        "manifest_mb": (place / "distilled" / "dataset.json").stat().st_size / 1e6,
        "restart_s": restart_s,
        "restart_mb": peak_mb(os.getpid()),
    }


def begin_part(folder: Path, count: int) -> dict:
    """What a driver that has everything before it takes: memory once it is at work, seconds until it is."""
    request = options(folder, count, str(folder / "run"))
    began, log = time.time(), folder / "run" / "events.jsonl"
    figures = {}

    def watch() -> None:
        while not log.exists() or (text := log.read_text()).count('"class_committed"') < SEEN:
            time.sleep(1.0)
        first = next(event for event in map(json.loads, text.splitlines()) if event["event"] == "unit_started")
        figures.update(driver_mb=peak_mb(os.getpid()), begin_s=first["time"] - began)
        print(json.dumps(figures), flush=True)
        # The rest would measure the disk: Ray's processes end with their driver.
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    distill(request, Nothing(), Resources(workers=2))
    return figures


class Counter:
    """Requests made."""

    def __init__(self) -> None:
        self.requests = 0


@contextlib.contextmanager
def slow_memory(counter: Counter):
    """fsspec's memory filesystem as a store where a request takes `REQUEST_S`."""
    plain = {name: getattr(MemoryFileSystem, name) for name in ("info", "find", "ls", "rm", "exists")}
    inside = threading.local()

    def waiting(name):
        def call(self, *args, **kwargs):
            if getattr(inside, "on", False):
                return plain[name](self, *args, **kwargs)
            inside.on = True
            try:
                counter.requests += 1
                time.sleep(REQUEST_S)
                return plain[name](self, *args, **kwargs)
            finally:
                inside.on = False

        return call

    def many(name):
        method = getattr(MemoryFileSystem, name)

        def call(self, paths, *args, **kwargs):
            if getattr(inside, "on", False):
                return method(self, paths, *args, **kwargs)
            inside.on = True
            try:
                count = len(paths) if isinstance(paths, list) else 1
                counter.requests += count
                time.sleep(REQUEST_S * -(-count // AT_ONCE))
                return method(self, paths, *args, **kwargs)
            finally:
                inside.on = False

        return call

    names = {name: waiting(name) for name in plain} | {
        name: many(name) for name in ("cat_file", "pipe_file", "cat_ranges")
    }
    names["rm"] = many("rm")
    kept = {name: MemoryFileSystem.__dict__.get(name) for name in names}
    for name, call in names.items():
        setattr(MemoryFileSystem, name, call)
    try:
        yield
    finally:
        for name, call in kept.items():
            delattr(MemoryFileSystem, name) if call is None else setattr(MemoryFileSystem, name, call)


def remote_part(folder: Path, count: int) -> dict:
    request = options(folder, count, "memory://scale/run")
    prepare(request, Nothing()).begin()
    commit_all(request)
    loose = len(fsspec.filesystem("memory").ls("/scale/run/state/events"))
    counter, figures = Counter(), {"events": loose}
    prepared = prepare(request, Nothing())
    steps = {
        "fold": lambda: events.fold(prepared.run),
        "manifest": prepared.write_manifest,
        "restart": lambda: distill(request, Nothing(), Resources()),
    }
    for name, step in steps.items():
        if name == "restart":
            prepared.end()
        counter.requests = 0
        with slow_memory(counter):
            start = time.perf_counter()
            step()
            figures |= {f"{name}_s": time.perf_counter() - start, f"{name}_requests": counter.requests}
    return figures


def listing_part(folder: Path, count: int) -> dict:
    """Per image: seconds and bytes of memory of the listing, of its units, and of finding what is scored already."""
    before, start = peak_mb(os.getpid()), time.perf_counter()
    sizes = {f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG": 110_000 for i in range(count)}
    named_s, start = time.perf_counter() - start, time.perf_counter()
    listing = imagefolder.list_images("x", sizes, None)
    listing_s, listing_mb = time.perf_counter() - start, peak_mb(os.getpid()) - before
    start = time.perf_counter()
    mark = fingerprint(listing)
    fingerprint_s, start = time.perf_counter() - start, time.perf_counter()
    source = Source("x", "imagefolder", "train", listing.classes, mark, (), "x", listing.rows)
    units = source.units(ROWS)
    units_s = time.perf_counter() - start
    run, files = Run(str(folder / "run")), min(len(units), 20_000)
    for unit in units[:files]:
        place = folder / "run" / "scores" / f"label={unit.label}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"unit-{unit.name}.parquet").touch()
    start = time.perf_counter()
    assert len(scores.committed_units(run)) == files
    return {
        "images": count,
        "arrow_bytes": listing.rows.nbytes / count,
        "peak_bytes": 1e6 * listing_mb / count,
        "us": 1e6 * (listing_s + fingerprint_s) / count,
        "units": len(units),
        "unit_us": 1e6 * units_s / len(units),
        "unit_bytes": len(np.concatenate([np.frombuffer(pickled(unit), np.uint8) for unit in units[:100]])) / 100,
        "scored_us": 1e6 * (time.perf_counter() - start) / files,
        "named_s": named_s,
    }


def pickled(unit) -> bytes:
    """A unit as it travels to the task that reads it."""
    import ray

    return ray.cloudpickle.dumps(unit)


PARTS = {"run": run_part, "begin": begin_part, "remote": remote_part, "listing": listing_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(PARTS[args.part](Path(folder), args.count)))


if __name__ == "__main__":
    main()
