"""How far raydd carries: simulated GPU workers from one to many, losses among them, very many classes and images.

Ray's scheduler, the Train worker group, the queue, the run directory, done-markers and manifest are the real ones;
classes compute by sleeping (`scale_cluster.py`), or nothing at all (`scale_store.py`, which goes through the whole
pipeline). All of it runs on this machine, so what the workers do besides sleeping shares its cores: a row is a lower
bound of what that many machines would give.

- efficiency: (sum of the sleeps / workers, or the longest) over the time from the first unit's begin to the last one's
  commit. Starting the group is told apart. In the row with losses one worker is killed after a quarter of the time and
  a node with a quarter of the workers is lost after half of it, once all are back; the ideal then counts those left;
- gap: between a commit and the next unit of the same worker, which is two answers of the queue and a look at the store;
- queue: `take` at the rate of 1,000 GPUs with units of a minute each, and how many per second the actor carries;
- store: restart with everything done, by the whole command; manifest; memory of the driver; the same over a network
  where each request takes 30 ms;
- listing: a source of a million images, to be multiplied.

    python benchmarks/scale.py [--workers 1 4 16 64] [--only units losses queue store listing]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import ray
import torch
from machine import finish, machine

from raydd.runtime.ray_units import GROUP_WORKERS

HERE = Path(__file__).parent
# Classes and mean seconds of sleep by workers: most of a minute for each row.
ROWS = {1: (40, 1.0), 4: (160, 1.0), 16: (250, 3.2), 64: (1000, 8.0)}
LOSSES = (8, 120, 2.0)
CLASSES = (1000, 21_841)
# A guess at spot machines that are taken away.
LOST_PER_HOUR = 0.05
PARTS = ("units", "losses", "queue", "store", "listing")


def part(script: str, *arguments: object) -> dict:
    """The figures of one part, measured in a process of its own."""
    line = [sys.executable, str(HERE / f"{script}.py"), *map(str, arguments)]
    # Many processes take a while to start on few cores; after a loss that long is waited for the old size (default 60).
    patient = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20" if "--lose" in arguments else "600"}
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | patient)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def units_line(row: dict, what: str = "") -> str:
    return (
        f"{row['workers']:7} {row['classes']:8,} {row['mean_s']:7.1f} {row['longest_s']:8.1f} {row['ideal_s']:7.1f}"
        f" {row['took_s']:7.1f} {row['efficiency']:11.3f} {row['start_s']:7.1f} {row['gap_ms']:6.1f}"
        f" {row['gap_p99_ms']:7.1f} {row['commit_ms']:7.1f} {row['driver_mb']:7.0f} {row['repeated']:9} {what}"
    )


def show_units(workers: list[int], losses: bool) -> dict:
    print(
        "workers  classes  mean s longest s ideal s  took s  efficiency start s gap ms  p99 ms  commit  driver MB"
        "  repeated",
        flush=True,
    )
    figures = {}
    for count in workers:
        row = part("scale_cluster", "units", count, *ROWS[count])
        print(units_line(row), flush=True)
        figures |= {f"efficiency_{count}": row["efficiency"], f"gap_ms_{count}": row["gap_ms"]}
        figures |= {f"start_s_{count}": row["start_s"], f"controller_share_{count}": row["controller_share"]}
    if losses:
        row = part("scale_cluster", "units", *LOSSES, "--lose")
        print(units_line(row, "one worker killed, one of four nodes lost"), flush=True)
        killed, lost = row["back_s"]
        print(f"  at work again {killed:.1f} s after the kill, {lost:.1f} s after the loss of the node", flush=True)
        figures |= {"efficiency_losses": row["efficiency"], "repeated_losses": row["repeated"]}
        figures |= {"back_after_kill_s": killed, "back_after_node_s": lost}
    return figures


def show_queue() -> dict:
    row = part("scale_cluster", "queue", 4, CLASSES[1])
    print(
        f"\nqueue of {CLASSES[1]:,} units: take at {row['paced_per_s']:.0f}/s (1,000 GPUs, a minute each)"
        f" {row['paced_ms']:.1f} ms, p99 {row['paced_p99_ms']:.1f} ms; flat out {row['flat_per_s']:.0f} takes"
        " and as many finishes per second",
        flush=True,
    )
    return {f"queue_{name}": value for name, value in row.items()}


def show_store() -> dict:
    figures = {}
    print("\nclasses  commit ms  kB per class  set MB  manifest s  restart s  restart MB", flush=True)
    for count in CLASSES:
        row = part("scale_store", "run", count)
        print(
            f"{count:7,} {row['commit_ms']:10.1f} {row['class_kb']:13.1f} {row['set_mb']:7.0f}"
            f" {row['manifest_s']:11.2f} {row['restart_s']:10.2f} {row['restart_mb']:11.0f}",
            flush=True,
        )
        figures |= {f"restart_all_done_s_{count}_classes": row["restart_s"], f"manifest_s_{count}": row["manifest_s"]}
    row = part("scale_store", "begin", CLASSES[1])
    figures |= {f"driver_mb_{CLASSES[1]}_classes": row["driver_mb"], "begin_s": row["begin_s"]}
    print(
        f"driver with {CLASSES[1]:,} classes before it: {row['driver_mb']:.0f} MB, at work after {row['begin_s']:.1f} s"
    )
    # The stand-in looks at all of its files for each request: with very many it would be measured itself.
    count = CLASSES[0]
    row = part("scale_store", "remote", count)
    print(
        f"30 ms per request, {count:,} classes: restart {row['restart_s']:.1f} s, manifest {row['manifest_s']:.1f} s,"
        f" folding {row['events']:,} events {row['fold_s']:.1f} s",
        flush=True,
    )
    figures |= {f"remote_{name}_{count}": row[name] for name in ("restart_s", "manifest_s", "fold_s")}
    return figures


def show_listing() -> dict:
    row = part("scale_store", "listing", 1_000_000)
    print(
        f"\nlisting of {row['images']:,} images: {row['us']:.2f} us and {row['peak_bytes']:.0f} B of memory per image"
        f" ({row['arrow_bytes']:.0f} B kept); {row['units']:,} shards, each {row['unit_us']:.0f} us to cut,"
        f" {row['unit_bytes'] / 1000:.1f} kB to send, {row['scored_us']:.0f} us to find when it is scored"
    )
    return {f"listing_{name}": row[name] for name in ("us", "peak_bytes", "unit_us", "unit_bytes", "scored_us")}


def reason(figures: dict) -> None:
    """What the figures mean for 1,000 GPUs and a billion images."""
    if "queue_flat_per_s" in figures:
        carried = figures["queue_flat_per_s"]
        print("\n1,000 GPUs")
        print(f"  queue: units of a minute are {1000 / 60:.0f} per second; it carries {carried:.0f}")
    if "back_after_node_s" in figures:
        back, every = figures["back_after_node_s"], 3600 / LOST_PER_HOUR
        together, apart = back * 1000 / every, back * GROUP_WORKERS / every
        print(f"  losses: a machine lasts {every / 3600:.0f} h, and its loss costs its group {back:.0f} s:")
        print(f"    {together:.0%} of the time were all 1,000 in one group, {apart:.1%} with {GROUP_WORKERS} in each")
    if "listing_peak_bytes" in figures:
        shards = 1e9 / 256
        memory, sent = 1e9 * figures["listing_peak_bytes"], shards * figures["listing_unit_bytes"]
        minutes = (1e9 * figures["listing_us"] + shards * figures["listing_unit_us"]) / 60e6
        print("A billion images")
        print(f"  listing: {memory / 1e9:.0f} GB in the driver, and in every worker that reads by key")
        print(f"  shards: {shards / 1e6:.1f} million; {minutes:.0f} min to cut, {sent / 1e9:.0f} GB of read tasks")
        print(f"    and {shards * figures['listing_scored_us'] / 1e6:.0f} s to find which are scored (local disk)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    print(f"{machine()}, on {cores} core(s), ray {ray.__version__}; {load:.1f} busy processes at the start\n")
    figures = {}
    if {"units", "losses"} & set(args.only):
        figures |= show_units(args.workers if "units" in args.only else [], "losses" in args.only)
    for name, show in (("queue", show_queue), ("store", show_store), ("listing", show_listing)):
        if name in args.only:
            figures |= show()
    reason(figures)
    print()
    finish(
        "scale",
        **figures,
        cores=cores,
        load_average=[round(load, 2), round(os.getloadavg()[0], 2)],
        ray=ray.__version__,
    )


if __name__ == "__main__":
    main()
