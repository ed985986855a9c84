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
    return {name: min(seconds) for name, seconds in timed_rounds(calls, repeats).items()}


def timed_rounds(
    calls: dict[str, Callable[[], object]], repeats: int, now: Callable[[], float] = clock, *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call in every round after a warm-up, unless all is `warm`; in a round all of them take turns."""
    for call in () if warm else calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = now()
            call()
            seconds[name].append(now() - start)
    return seconds


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """One line for people."""
    return f"{cpu_name()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()}, torch {torch.__version__}"


def finish(benchmark: str, **figures: object) -> None:
    """Append the figures, with machine, versions and command, to results/<benchmark>.jsonl and print them last.

    Of places on this machine only their last part is recorded.
    """
    record = {k: round(v, 9) if isinstance(v, float) else v for k, v in figures.items()}
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    facts = dict(
        torch=torch.__version__,
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        clock="process_time" if torch.get_num_threads() == 1 else "perf_counter",
        command=" ".join(["python", Path(sys.argv[0]).name, *arguments]),
        date=time.strftime("%Y-%m-%d"),
    )
    line = json.dumps(record | {k: v for k, v in facts.items() if k not in record})
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)
