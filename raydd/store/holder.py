"""Being the only job that writes a run: `with hold(run):`. A second job that would write it is refused in one line.

A daemon thread renews the lease (`raydd.store.lease`) every `RENEW_S` while the block runs. What a job left that died
is taken over, which is logged as an event.

Who is dead (ours). On the same machine a process that has ended is dead at once, and one that runs counts as alive for
`STALE_S` after its last renewal. A lease of another machine is watched: it is alive if it changes, dead if it has not
for `STALE_S`. Only one that is older than any usual error of a clock (`SKEW_S`; S3 refuses requests that are further
off) is not watched.

Who wins. New leases are created exclusively (`filesystem.create`). Where that is no atomic operation, and whenever a
dead lease is replaced, a job writes its own, waits `SETTLE_S`, and goes on only if it then reads its own.

Limits. A job that stood still for `STALE_S` (a suspended laptop, storage that failed) may lose its lease while it
lives: at its next renewal it notices and stops as if interrupted, but what it writes in between still lands. Every
commit is atomic and depends on the configuration alone, so the run is not damaged by that. The wait of `SETTLE_S` is no
proof against a process that is paused for longer than that between looking and writing; the next renewal finds it.
Threads of one process count as one job. What workers write is covered by the lease of their driver.
"""

import contextlib
import dataclasses
import json
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from raydd.errors import UserError
from raydd.store import events, filesystem, lease
from raydd.store.lease import Lease
from raydd.store.reach import is_local, scheme
from raydd.store.run import Run

RENEW_S, STALE_S, POLL_S, SETTLE_S, SKEW_S = 10.0, 60.0, 1.0, 1.0, 900.0
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time, and waiting; tests bring their own."""

    now: Callable[[], float] = time.time
    wait: Callable[[float], None] = time.sleep


# URIs of the runs that this process holds: a stage inside another one must not refuse itself.
_held: set[str] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def hold(*runs: Run, clock: Clock = Clock(), say: Callable[[str], None] = print) -> Iterator[None]:
    """Be the only job that writes `runs` while the block runs; runs that this process holds already stay as they are.

    May wait for up to `STALE_S` where a job on another machine seems to have died, and then says so. Raises `UserError`
    if another job writes one of the runs, and when a lease was lost to one.
    """
    runs = {filesystem.absolute(run.uri): run for run in runs}
    with _lock:
        fresh = {uri: run for uri, run in runs.items() if uri not in _held}
        _held.update(fresh)
    holder = Holder(list(fresh.values()), clock, say)
    try:
        holder.acquire()
        with _renewing(holder):
            yield
    except BaseException as error:
        if holder.lost:
            raise holder.lost from error
        raise
    finally:
        holder.release()
        with _lock:
            _held.difference_update(fresh)
    if holder.lost:
        raise holder.lost


class Holder:
    """One job's leases: taken together or not at all, renewed, and given back."""

    def __init__(self, runs: list[Run], clock: Clock = Clock(), say: Callable[[str], None] = print) -> None:
        self.runs, self.clock, self.say = runs, clock, say
        self.owner, self.started = secrets.token_hex(8), clock.now()
        self.mine: list[Run] = []
        self.lost: UserError | None = None

    def acquire(self) -> None:
        """Take every lease. Raises `UserError`, holding none, if another job has one."""
        try:
            self._acquire()
        except BaseException:
            self.release()
            raise

    def _acquire(self) -> None:
        unsure, taken = [], []
        for run in self.runs:
            if filesystem.create(lease.path(run), self._content()):
                self.mine.append(run)
                # A created file is proof enough where no server stands between that may not know the condition.
                unsure += [] if is_local(run.uri) or scheme(run.uri) == "memory" else [run]
            elif (found := lease.read(run)) is not None and found.owner == self.owner:
                # A store whose answer was lost is asked a second time, and refuses what it has done.
                self.mine.append(run)
                unsure.append(run)
            else:
                taken.append((run, found))
        self._outlast(taken)
        for run, old in taken:
            self._replace(run, old)
        unsure += [run for run, _ in taken]
        if unsure:
            self.clock.wait(SETTLE_S)
        for run in unsure:
            found = lease.read(run)
            if found is None or found.owner != self.owner:
                raise _refusal(run, found)
        for run, old in taken:
            if old is not None:
                events.append(run, "lease_taken_over", host=old.host, pid=old.pid, renewed=old.renewed)

    def _outlast(self, taken: list[tuple[Run, Lease | None]]) -> None:
        """Return when all these leases are known to be dead. Raises `UserError` for one that is alive."""
        watched = [(run, old) for run, old in taken if old is not None and not self._is_over(run, old)]
        if watched:
            run, old = watched[0]
            more = f" and {len(watched) - 1} more" if len(watched) > 1 else ""
            self.say(
                f"{run.uri}{more}: a job on host {old.host} (pid {old.pid}) wrote here; "
                f"watching for up to {STALE_S:.0f} s whether it is alive"
            )
        polls = 0
        while watched:
            self.clock.wait(POLL_S)
            polls += 1
            if polls % (RENEW_S / POLL_S) == 0:
                self.renew()
            for run, old in list(watched):
                found = lease.read(run)
                if found is None or polls * POLL_S >= STALE_S:
                    watched.remove((run, old))
                if found is not None and found != old:
                    raise _refusal(run, found)

    def _is_over(self, run: Run, old: Lease) -> bool:
        """Whether a lease is dead for sure. Raises `UserError` if it is alive for sure; else it has to be watched."""
        age = self.clock.now() - old.renewed
        if not old.is_here():
            return age > SKEW_S
        if not old.has_died() and age <= STALE_S:
            raise _refusal(run, old)
        return True

    def _replace(self, run: Run, old: Lease | None) -> None:
        found = lease.read(run)
        if found is not None and found != old:
            raise _refusal(run, found)
        if found is not None:
            filesystem.write_atomic(lease.path(run), self._content())
        elif not filesystem.create(lease.path(run), self._content()):
            found = lease.read(run)
            if found is None or found.owner != self.owner:
                raise _refusal(run, found)
        self.mine.append(run)

    def renew(self) -> None:
        """Renew every lease; a lease that another job has meanwhile is `lost`.

        Storage that fails is tried again at the next renewal.
        """
        if len(self.mine) == 1:
            self._renew(self.mine[0])
        elif self.mine:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(self._renew, self.mine))

    def _renew(self, run: Run) -> None:
        # Whatever a remote client raises here must not end the thread that renews.
        with contextlib.suppress(Exception):
            found = lease.read(run)
            if found is None:
                filesystem.create(lease.path(run), self._content())
            elif found.owner == self.owner:
                filesystem.write_atomic(lease.path(run), self._content())
            else:
                self.lost = UserError(
                    f"{run.uri} was taken over by another job ({found.who}), because this one stood still for over "
                    f"{STALE_S:.0f} s: what is committed stays; let the other one finish"
                )

    def release(self) -> None:
        """Give all leases back that are still ours; what cannot be reached goes stale by itself."""
        for run in self.mine:
            with contextlib.suppress(Exception):
                found = lease.read(run)
                if found is not None and found.owner == self.owner:
                    filesystem.remove_tree(lease.path(run))
        self.mine = []

    def _lease(self) -> Lease:
        return Lease(
            owner=self.owner,
            host=platform.node(),
            machine=lease.this_machine(),
            pid=os.getpid(),
            born=lease.birth(os.getpid()),
            started=round(self.started, 3),
            renewed=round(self.clock.now(), 3),
        )

    def _content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self._lease()), indent=1).encode()


@contextlib.contextmanager
def _renewing(holder: Holder) -> Iterator[None]:
    """Renew in a daemon thread; interrupt the main thread, if it is the one that works, when a lease is lost."""
    if not holder.mine:
        yield
        return
    stopped, in_main = threading.Event(), threading.current_thread() is threading.main_thread()

    def beat() -> None:
        while not stopped.wait(RENEW_S):
            holder.renew()
            if holder.lost:
                if in_main and not stopped.is_set():
                    # A signal, unlike `interrupt_main`, also wakes a thread that waits in the system or in Ray.
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return

    thread = threading.Thread(target=beat, daemon=True, name="raydd-lease")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        # A renewal under way must not write the lease again after it was given back.
        thread.join(timeout=STALE_S)


def _refusal(run: Run, found: Lease | None) -> UserError:
    who = found.who if found else "it came and went just now"
    return UserError(
        f"{run.uri} is being written by another job ({who}): wait until it ends, or stop it, and run the same "
        "command again; or choose another --out"
    )
