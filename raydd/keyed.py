"""Randomness by name: every draw is a function of (seed, class, index ...), never of rank, worker or arrival order.

`blake2b` over a canonical encoding of the parts keys a Philox counter generator. Equal parts give equal draws on every
machine, in every process, in any order of calls.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def digest(*parts: object, size: int = 8) -> bytes:
    """`size` bytes of hash over the parts' types and values (int, float, str, bytes, bool, None, tuples of them)."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).digest()


def hash64(*parts: object) -> int:
    """Unsigned 64-bit hash of the parts; sorting keys by it draws a sample that does not depend on listing order."""
    return int.from_bytes(digest(*parts), "big")


def numpy_rng(*parts: object) -> np.random.Generator:
    """NumPy generator for exactly these parts."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(*parts, size=16), "big")))


def torch_rng(*parts: object) -> "torch.Generator":
    """CPU torch generator for exactly these parts (move the draws, not the generator, to a device)."""
    # Here, because processes that only read and decode start three times faster without torch.
    import torch

    return torch.Generator().manual_seed(hash64(*parts) >> 1)


def smallest(keys: Sequence[str], count: int, *parts: object) -> list[int]:
    """Positions of the `count` keys with the smallest hash of (parts, key), in that order: a keyed random sample."""
    order = sorted(range(len(keys)), key=lambda i: (hash64(*parts, keys[i]), keys[i]))
    return order[:count]
