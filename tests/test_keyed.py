"""Draws depend on their key alone: stored values hold on every machine, global state is left alone, order is free."""

import numpy as np
import torch

from raydd.keyed import digest, hash64, numpy_rng, smallest, torch_rng


def test_stored_values():
    assert digest("a", 1).hex() == "9a7f386fd1afb2ac"
    assert hash64("candidate", 0, "cat", "0/1.png") == 3469649307063362942
    assert numpy_rng("x", 3).integers(0, 1000, 4).tolist() == [144, 197, 211, 588]
    assert torch.randint(0, 1000, (4,), generator=torch_rng("x", 3)).tolist() == [152, 575, 502, 47]


def test_types_and_boundaries_of_parts_count():
    different = [
        ("a", 1),
        ("a", "1"),
        ("a", 1.0),
        ("a", True),
        ("a1",),
        (("a", 1),),
        ("a", 1, None),
        (b"a", 1),
        (1, "a"),
    ]
    assert len({hash64(*parts) for parts in different}) == len(different)


def test_global_generators_are_left_alone():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    numpy_rng("x").random(10)
    torch.rand(10, generator=torch_rng("x"))
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_sample_does_not_depend_on_the_order_of_the_keys():
    keys = [f"{i:03d}" for i in range(100)]
    chosen = [keys[i] for i in smallest(keys, 10, "draw", 0)]
    assert [keys[::-1][i] for i in smallest(keys[::-1], 10, "draw", 0)] == chosen
    assert [keys[i] for i in smallest(keys, 30, "draw", 0)][:10] == chosen
    assert [keys[i] for i in smallest(keys, 10, "draw", 1)] != chosen
    assert sorted(smallest(keys, 1000, "draw", 0)) == list(range(100))


def test_every_key_is_drawn_equally_often():
    """400 draws of 5 out of 20: each key is expected 100 times, with a deviation of 8.7."""
    counts = np.bincount([i for seed in range(400) for i in smallest([str(k) for k in range(20)], 5, seed)])
    assert abs(counts - 100).max() < 4.5 * 8.7
