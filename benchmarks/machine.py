"""What the benchmarks of this folder share: the clock, the machine's description, and the record of a result."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def clock() -> float:
    """Seconds: CPU time of this process with one thread (neighbors do not count), else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(call: Callable[[], object], repeats: int = 3) -> float:
    """Least seconds of `repeats` calls after one warm-up."""
    return timed_together({"": call}, repeats)[""]


def timed_together(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each call after a warm-up, taking turns so that drifts of the machine hit all alike."""
    for call in calls.values():
        call()
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            least[name] = min(least[name], clock() - start)
    return least


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """One line for people."""
    return f"{cpu_name()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()}, torch {torch.__version__}"


def finish(benchmark: str, **figures: object) -> None:
    """Append the figures, with machine, versions and command, to results/<benchmark>.jsonl and print them last."""
    record = {k: round(v, 9) if isinstance(v, float) else v for k, v in figures.items()}
    record |= dict(
        torch=torch.__version__,
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        clock="process_time" if torch.get_num_threads() == 1 else "perf_counter",
        command=" ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
    )
    line = json.dumps(record)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)
