"""What a process frees, it has for the next tensor; other C libraries and users' own settings are left alone."""

import platform
import subprocess
import sys

import pytest

from raydd.runtime import heap

# Pages that the system had to hand out for a tensor of 64 MB that is made anew, ten times.
CODE = """
import resource, torch
from raydd.runtime import heap
from raydd.runtime.work import settle
torch.cuda.is_available = lambda: {cuda}
heap.memory_per_cpu = lambda: {memory}
settle(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


def pages(cuda: bool = False, memory: int = 2**33, **environment: str) -> int:
    code = CODE.format(cuda=cuda, memory=memory)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")


@needs_glibc
def test_settled_on_a_cpu_a_process_asks_for_its_memory_once():
    assert pages() < 1000


@needs_glibc
@pytest.mark.parametrize("changes", [{"cuda": True}, {"memory": 2**31}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_with_an_accelerator_little_memory_or_settings_of_the_users_all_is_as_ever(changes):
    # Pages of 64 KiB are the largest that a Linux of today has by default.
    assert pages(**changes) >= 10 * 2**26 / 2**16


def test_another_c_library_is_left_alone(monkeypatch):
    for name in heap.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep_freed()
