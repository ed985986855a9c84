"""What a lease says is read back; a damaged one has no holder; a process is told from a later one of its number."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from raydd.store import filesystem, lease
from raydd.store.lease import Lease
from raydd.store.run import Run

MINE = Lease(
    owner="me",
    host="here",
    machine=lease.this_machine(),
    pid=os.getpid(),
    born=lease.birth(os.getpid()),
    started=0,
    renewed=1.5,
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(str(tmp_path))


def write(run: Run, content: bytes) -> None:
    filesystem.write_atomic(lease.path(run), content)


def test_a_lease_is_read_back(run):
    assert lease.read(run) is None
    write(run, json.dumps(dataclasses.asdict(MINE)).encode())
    assert lease.read(run) == MINE
    assert MINE.who == f"host here, pid {os.getpid()}, since 1970-01-01 00:00:00 UTC"


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b'{"pid": "x"}', b'{"owner": 1}', b"\xff"])
def test_a_damaged_lease_has_no_holder(run, content):
    write(run, content)
    assert lease.read(run).owner == "?" and lease.read(run).renewed == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_times_that_are_none_are_not_believed(run, value):
    write(run, json.dumps(dataclasses.asdict(dataclasses.replace(MINE, renewed=value))).encode())
    assert lease.read(run).owner == "?"


def test_only_processes_of_this_machine_can_be_dead():
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone = dataclasses.replace(MINE, pid=int(ended.stdout))
    assert gone.has_died() and not MINE.has_died()
    assert dataclasses.replace(MINE, born="1").has_died(), "a later process of the same number"
    assert not dataclasses.replace(gone, machine="elsewhere").has_died()
    assert MINE.is_here() and not dataclasses.replace(MINE, machine="elsewhere").is_here()
