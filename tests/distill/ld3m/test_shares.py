"""Any number of ranks computes the same numbers as one, and each computes its own chunks only."""

import dataclasses

import pytest
import torch
from ranks import Ranks
from small_priors import unet_prior
from test_ld3m_loop import PACK, RATES, coupled, start

from raydd.distill.ld3m import shares
from raydd.distill.ld3m.loop import State
from raydd.distill.ld3m.shares import Shares


def shared(monkeypatch, world):
    ranks = Ranks(world)
    monkeypatch.setattr(shares, "dist", ranks)
    return ranks


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("graph", ["one", "two"])
def test_ranks_end_with_the_numbers_of_one(world, graph, monkeypatch):
    prior = unet_prior()
    switches = {"chunk": 1, "iterations": 4, "heldout": 1, "graph": graph}
    alone = coupled(prior, **switches)
    expected = alone.run(State(0, *start(prior)), RATES)
    asked = []

    def work(rank):
        descent = dataclasses.replace(coupled(prior, **switches), shares=Shares(rank, world))
        generate = descent.generator.pixels
        descent.generator.pixels = lambda z, c, noise: asked.append((rank, len(z))) or generate(z, c, noise)
        end = descent.run(State(0, *start(prior)), RATES)
        return end, descent.images(end.z, end.c)

    for end, images in shared(monkeypatch, world).run(work):
        assert torch.equal(end.z, expected.z) and torch.equal(end.c, expected.c)
        assert end.losses == expected.losses and end.heldout == expected.heldout
        assert all(torch.equal(end.memory[name], expected.memory[name]) for name in expected.memory)
        assert torch.equal(images, alone.images(expected.z, expected.c))
    counts = [sum(1 for rank, _ in asked if rank == r) for r in range(world)]
    assert len(set(counts)) == 1 and sum(counts) % len(PACK) == 0


def test_chunks_are_dealt_in_turn():
    assert [list(Shares(rank, 3).mine(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert list(Shares().mine(3)) == [0, 1, 2]


def test_rank_0_decides(monkeypatch):
    assert Shares().agree(True, "cpu") is True and Shares().agree(False, "cpu") is False
    ranks = shared(monkeypatch, 2)
    assert ranks.run(lambda rank: Shares(rank, 2).agree(rank == 0, "cpu")) == [True, True]
    assert ranks.run(lambda rank: Shares(rank, 2).agree(rank == 1, "cpu")) == [False, False]
