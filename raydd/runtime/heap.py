"""Freed memory is kept for the next tensor, which saves computing on a CPU up to a quarter (`benchmarks/heap.py`).

The GNU C library maps every block of more than 32 MB for itself and gives it back once it is freed, and smaller ones
when much is free at the heap's end. The activations of a batch are such blocks: each step of a training asks for the
same ones again, and the system clears them page by page. The price is a larger peak, because what lies between two kept
blocks is not always used again; so the limits are shares of the memory there is for each CPU.
"""

import ctypes
import os

# Larger blocks than a 64th of a CPU's memory are mapped as ever, within these bounds; the lower one is glibc's own.
SHARE = 64
BOUNDS = (2**25, 2**30)
# How many such blocks are kept at the heap's end.
BLOCKS = 8
# <malloc.h>, and what tells of a user who has chosen for himself.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Let this process keep what it frees; whether it does: not without glibc, nor against the user's own settings."""
    if any(name in os.environ for name in CHOICES):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    block = min(max(memory_per_cpu() // SHARE, BOUNDS[0]), BOUNDS[1])
    limits = {M_MMAP_THRESHOLD: block, M_TRIM_THRESHOLD: min(BLOCKS * block, BOUNDS[1])}
    return all([set_option(option, limit) for option, limit in limits.items()])


def memory_per_cpu() -> int:
    """Bytes of this machine's memory over its CPUs."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (os.cpu_count() or 1)
