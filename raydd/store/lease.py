"""`RUN/state/lease.json`: which job writes a run (`raydd.store.holder` takes, renews and gives back).

A lease says who (a random owner id, host, process), since when, and when it was last renewed. Clocks of different
machines are not compared: whether a holder lives is known at once only on its own machine, the same boot and process
namespace, where a process that has ended is dead.
"""

import dataclasses
import functools
import os
import platform
import time

from raydd.store import filesystem
from raydd.store.plain import parse_json
from raydd.store.run import Run

LAST_S = 2.0**36  # times are below this, or not believed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lease:
    """Who writes a run. Times are seconds since 1970 by the clock of the holder.

    machine: boot and process namespace, within which `pid` means something. born: what tells the process from a later
    one of the same number, None if it was not to be had.
    """

    owner: str
    host: str
    machine: str
    pid: int
    born: str | None
    started: float
    renewed: float

    @property
    def who(self) -> str:
        """Host, process and beginning, for people."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return f"host {self.host}, pid {self.pid}, since {since}"

    def has_died(self) -> bool:
        """Whether the holder is a process of this machine that has ended."""
        if not self.is_here():
            return False
        found = birth(self.pid)
        return found is None or found != self.born

    def is_here(self) -> bool:
        """Whether the holder runs on this machine, by whose clock its times are."""
        return self.machine == this_machine()


def read(run: Run) -> Lease | None:
    """The lease of a run as it stands, whoever holds it; None without one. One that is damaged has no holder."""
    try:
        plain = parse_json(filesystem.read_bytes(path(run)))
        kinds = {"pid": int, "started": (int, float), "renewed": (int, float), "born": (str, type(None))}
        names = [field.name for field in dataclasses.fields(Lease)]
        if not all(isinstance(plain[name], kinds.get(name, str)) for name in names):
            raise ValueError("a value of another type")
        if not all(0 <= plain[name] < LAST_S for name in ("started", "renewed")):
            raise ValueError("no time")
        return Lease(**{name: plain[name] for name in names})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Lease(owner="?", host="?", machine="?", pid=0, born=None, started=0.0, renewed=0.0)


def path(run: Run) -> str:
    """Where the lease of a run lies."""
    return run.path("state", "lease.json")


@functools.cache
def this_machine() -> str:
    """What is the same for two processes exactly if each sees the other by its number: boot and process namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def birth(pid: int) -> str | None:
    """When a process of this machine started, in ticks since boot; "alive" where that is not told; None if it ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name in the second field may hold blanks and brackets.
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it is another user's
    return "alive"
