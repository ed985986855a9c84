"""Processes of this machine as Linux tells of them: who started whom, Ray's titles, CPU seconds, memory."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A living process: its parent, its command line (Ray's actors tell there what they do), its CPU seconds so far."""

    pid: int
    parent: int
    title: str
    cpu_s: float


def processes() -> dict[int, Process]:
    """All processes by their number; those that end meanwhile are left out."""
    found = {}
    tick = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            # The name, in parentheses, may hold spaces; behind it come the state, the parent, and further on the times.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pid = int(folder.name)
            found[pid] = Process(pid, int(fields[1]), title, (int(fields[11]) + int(fields[12])) / tick)
    return found


def descendants(top: int | None = None) -> list[Process]:
    """Processes that `top`, or this process, started, and those that they did."""
    children: dict[int, list[Process]] = {}
    for process in processes().values():
        children.setdefault(process.parent, []).append(process)
    found, waiting = [], [os.getpid() if top is None else top]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += [process.pid for process in own]
    return found


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had resident, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000
