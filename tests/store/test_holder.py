"""One job writes a run: a second is refused by name, a dead one is replaced, a lost lease stops its holder.

Time is a counter that waiting moves on; what other jobs do meanwhile happens while somebody waits.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from raydd.errors import UserError
from raydd.store import events, filesystem, lease
from raydd.store import holder as module
from raydd.store.holder import POLL_S, RENEW_S, SETTLE_S, SKEW_S, STALE_S, Clock, Holder, hold
from raydd.store.lease import Lease
from raydd.store.run import Run


class World:
    """A clock whose waits move it on, and what happens at given moments of waiting."""

    def __init__(self, now: float = 1.7e9):
        self.time, self.waited, self.plans, self.said = now, 0.0, [], []
        self.clock = Clock(lambda: self.time, self.wait)

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.waited += seconds
        for when, act in [plan for plan in self.plans if plan[0] <= self.waited]:
            self.plans.remove((when, act))
            act()

    def at(self, seconds: float, act) -> None:
        self.plans.append((seconds, act))

    def holder(self, *runs: Run) -> Holder:
        return Holder(list(runs), self.clock, self.said.append)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    run = Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")
    yield run
    filesystem.remove_tree(run.uri)


def write(run: Run, found: Lease) -> None:
    filesystem.write_atomic(lease.path(run), json.dumps(dataclasses.asdict(found)).encode())


def foreign(world: World, **changes) -> Lease:
    """The lease of a job on another machine, renewed a moment ago."""
    plain = {"owner": "other", "host": "node-7", "machine": "elsewhere", "pid": 4242, "born": "1"}
    return Lease(**(plain | {"started": world.time - 3600, "renewed": world.time - 3} | changes))


def named(run: Run) -> list[str]:
    return [event["event"] for event in events.read(run)]


def test_a_lease_says_who_and_since_when_and_is_gone_afterwards(run, world):
    holder = world.holder(run)
    holder.acquire()
    found = lease.read(run)
    assert found.pid == os.getpid() and found.is_here() and not found.has_died()
    assert (found.started, found.renewed) == (world.time, world.time)
    world.wait(RENEW_S)
    holder.renew()
    assert lease.read(run) == dataclasses.replace(found, renewed=world.time)
    holder.release()
    assert lease.read(run) is None and named(run) == []


def test_a_job_of_the_same_machine_that_lives_is_refused_at_once(run, world):
    world.holder(run).acquire()
    before = lease.read(run)
    with pytest.raises(UserError, match=rf"written by another job \(host .*, pid {os.getpid()}, since 2023-11-14"):
        world.holder(run).acquire()
    assert world.waited == 0 and lease.read(run) == before


def test_a_process_that_ended_is_replaced_at_once(run, world):
    code = "from raydd.store import lease; import os; print(lease.birth(os.getpid()), lease.this_machine())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    born, machine = ended.stdout.split()
    assert machine == lease.this_machine() and born.isdigit()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        write(run, foreign(world, machine=machine, pid=alive.pid, born=lease.birth(alive.pid)))
        with pytest.raises(UserError, match="another job"):
            world.holder(run).acquire()
        # A later process of the same number is not the holder.
        write(run, foreign(world, machine=machine, pid=alive.pid, born=born))
        world.holder(run).acquire()
        assert lease.read(run).pid == os.getpid() and named(run) == ["lease_taken_over"]
        filesystem.remove_tree(run.path("state"))
        write(run, foreign(world, machine=machine, pid=alive.pid, born=lease.birth(alive.pid)))
        alive.kill()
        while not lease.read(run).has_died():  # a zombie, until it is waited for
            time.sleep(0.001)
    world.holder(run).acquire()
    assert world.waited <= 2


def test_a_process_of_this_machine_that_stands_still_is_replaced(run, world):
    stopped = world.holder(run)
    stopped.acquire()
    world.wait(STALE_S + 1)
    second = world.holder(run)
    second.acquire()
    assert lease.read(run).owner == second.owner
    # Awake again, the first finds out at its next renewal and takes nothing back.
    stopped.renew()
    assert "taken over by another job" in str(stopped.lost)
    stopped.release()
    assert lease.read(run).owner == second.owner


@pytest.mark.parametrize("skew", [0, -600, 600])
def test_a_job_elsewhere_is_alive_while_its_lease_changes(run, world, skew):
    """Whatever its clock says, and with the first renewal late."""
    write(run, foreign(world, renewed=world.time + skew))
    world.at(20, lambda: write(run, foreign(world, renewed=world.time + skew)))
    with pytest.raises(UserError, match=r"host node-7, pid 4242"):
        world.holder(run).acquire()
    assert 20 <= world.waited <= 20 + POLL_S and "watching for up to 60 s" in world.said[0]
    assert lease.read(run).owner == "other" and named(run) == []


@pytest.mark.parametrize("skew", [0, -600, 600])
def test_a_job_elsewhere_is_dead_once_its_lease_has_not_changed_for_a_minute(run, world, skew):
    write(run, foreign(world, renewed=world.time + skew))
    holder = world.holder(run)
    holder.acquire()
    assert STALE_S <= world.waited <= STALE_S + 5 and lease.read(run).owner == holder.owner
    (event,) = events.read(run)
    assert (event["event"], event["host"], event["pid"]) == ("lease_taken_over", "node-7", 4242)


def test_a_job_elsewhere_that_ends_meanwhile_leaves_the_run_free(run, world):
    write(run, foreign(world))
    world.at(5, lambda: filesystem.remove_tree(lease.path(run)))
    holder = world.holder(run)
    holder.acquire()
    assert world.waited < 10 and lease.read(run).owner == holder.owner


def test_a_lease_of_yesterday_is_not_watched(run, world):
    write(run, foreign(world, renewed=world.time - SKEW_S - 1))
    world.holder(run).acquire()
    assert world.waited <= 2 and not world.said


def test_a_damaged_lease_is_replaced(run, world):
    filesystem.write_atomic(lease.path(run), b"{")
    holder = world.holder(run)
    holder.acquire()
    assert lease.read(run).owner == holder.owner


def test_of_two_that_replace_a_dead_lease_one_wins(run, world):
    """The other one looked at the same dead lease, and writes last: this one must read back, and give way."""
    write(run, foreign(world, renewed=world.time - SKEW_S - 1))
    world.at(0.5, lambda: write(run, foreign(world, owner="rival", host="node-8")))
    holder = world.holder(run)
    with pytest.raises(UserError, match="host node-8"):
        holder.acquire()
    assert lease.read(run).owner == "rival" and not holder.mine and named(run) == []


def test_a_lease_that_was_replaced_since_it_was_judged_is_left(run, world):
    old, holder = foreign(world), world.holder(run)
    write(run, foreign(world, owner="rival"))
    with pytest.raises(UserError, match="another job"):
        holder._replace(run, old)
    assert lease.read(run).owner == "rival"


def test_threads_that_start_at_once_get_one_lease(run):
    holders, refused = [Holder([run]) for _ in range(8)], []

    def acquire(holder):
        try:
            holder.acquire()
        except UserError:
            refused.append(holder)

    threads = [threading.Thread(target=acquire, args=(holder,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (winner,) = set(holders) - set(refused)
    assert lease.read(run).owner == winner.owner


def test_several_runs_are_taken_together_or_not_at_all(tmp_path, world):
    runs = [Run(str(tmp_path / name)) for name in "abc"]
    write(runs[1], foreign(world))
    world.at(RENEW_S * 2, lambda: write(runs[1], foreign(world)))
    holder = world.holder(*runs)
    with pytest.raises(UserError, match="/b is being written"):
        holder.acquire()
    assert [lease.read(run) is None for run in runs] == [True, False, True]


def test_leases_taken_first_are_renewed_while_others_are_watched(tmp_path, world):
    runs = [Run(str(tmp_path / name)) for name in "abc"]
    for run in runs[1:]:
        write(run, foreign(world))
    seen = []
    world.at(STALE_S - 1, lambda: seen.append(world.time - lease.read(runs[0]).renewed))
    holder = world.holder(*runs)
    holder.acquire()
    assert seen[0] <= RENEW_S + POLL_S and world.waited <= STALE_S + 5
    assert "/b and 1 more: a job on host node-7" in world.said[0]
    assert {lease.read(run).owner for run in runs} == {holder.owner}


def test_storage_that_fails_does_not_end_the_renewals(tmp_path, world, monkeypatch):
    run = Run(str(tmp_path / "run"))
    holder = world.holder(run)
    holder.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError("away")))
        holder.renew()
    world.wait(RENEW_S)
    holder.renew()
    assert holder.lost is None and lease.read(run).renewed == world.time
    # A lease that somebody removed by hand is written again.
    filesystem.remove_tree(run.path("state"))
    holder.renew()
    assert lease.read(run).owner == holder.owner


def test_a_stage_inside_another_is_not_refused(run):
    with hold(run):
        owner = lease.read(run).owner
        with hold(run, Run(run.uri + "-other")):
            assert lease.read(run).owner == owner and lease.read(Run(run.uri + "-other")).owner != owner
        assert lease.read(run).owner == owner and lease.read(Run(run.uri + "-other")) is None
        with pytest.raises(UserError):
            Holder([run]).acquire()
    assert lease.read(run) is None
    with hold(run):
        pass
    assert lease.read(run) is None


def test_an_error_gives_the_lease_back(run):
    with pytest.raises(ZeroDivisionError), hold(run):
        raise ZeroDivisionError
    assert lease.read(run) is None


def test_holding_nothing_writes_nothing(tmp_path):
    with hold():
        assert not list(tmp_path.iterdir())


def test_a_lease_is_renewed_while_the_block_runs(run, monkeypatch):
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    with hold(run):
        first = lease.read(run).renewed
        deadline = time.monotonic() + 5
        while lease.read(run).renewed == first:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert lease.read(run) is None


def test_a_job_that_lost_its_lease_is_stopped(run, world, monkeypatch):
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    with pytest.raises(UserError, match=r"taken over by another job \(host node-7"), hold(run):
        write(run, foreign(world))
        time.sleep(5)  # interrupted
        pytest.fail("nobody stopped the job")
    assert lease.read(run).owner == "other"


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of an S3 server on this machine."""
    server_module, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
        for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("leases")
        yield "s3://leases"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3_creates_once_and_is_read_back(bucket, world):
    uri = f"{bucket}/file"
    assert filesystem.create(uri, b"first") and not filesystem.create(uri, b"second")
    assert filesystem.read_bytes(uri) == b"first"
    run = Run(f"{bucket}/run")
    holder = world.holder(run)
    holder.acquire()
    assert world.waited == SETTLE_S
    with pytest.raises(UserError, match="another job"):
        world.holder(run).acquire()
    holder.release()
    assert lease.read(run) is None


def test_a_store_without_conditional_puts_is_settled_by_reading_back(bucket, world, monkeypatch):
    import s3fs

    plain = s3fs.S3FileSystem.pipe_file

    def no_conditions(self, path, value, mode="overwrite", **more):
        if mode == "create":
            raise NotImplementedError("A header you provided implies functionality that is not implemented")
        return plain(self, path, value, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", no_conditions)
    run = Run(f"{bucket}/old-server")
    # Both looked before either wrote; the other one wrote last.
    world.at(0.5, lambda: write(run, foreign(world, host="node-8")))
    with pytest.raises(UserError, match="host node-8"):
        world.holder(run).acquire()
    assert lease.read(run).owner == "other"
    assert not filesystem.create(lease.path(run), b"x")


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(UserError, match=r"cannot write s3://no-bucket/run/state/lease.json: there is no such bucket"):
        Holder([Run("s3://no-bucket/run")]).acquire()


@pytest.mark.parametrize("left", ["nothing", "a dead lease that goes"])
def test_a_lease_whose_answer_was_lost_is_ones_own(run, world, monkeypatch, left):
    """The client asks again, and the store refuses to create what the first request has made."""
    create = filesystem.create
    if left != "nothing":
        write(run, foreign(world))
        world.at(STALE_S / 2, lambda: filesystem.remove_tree(lease.path(run)))

    def answer_lost(uri: str, data: bytes) -> bool:
        create(uri, data)
        return False

    monkeypatch.setattr(filesystem, "create", answer_lost)
    holder = world.holder(run)
    holder.acquire()
    assert lease.read(run).owner == holder.owner
    holder.release()
    assert lease.read(run) is None
