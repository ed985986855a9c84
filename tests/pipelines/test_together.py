"""Units that several ranks compute together: the set of one process, committed once, and what is refused."""

import contextlib
import dataclasses
import threading

import pytest
import small_ld3m
from ranks import Ranks
from small_ld3m import made, method, options

from raydd.distill.ld3m import shares
from raydd.distill.ld3m.loop import Descent
from raydd.errors import UserError
from raydd.pipelines.distill import distill, prepare
from raydd.pipelines.together import SharedUnit
from raydd.runtime import checkpoints
from raydd.runtime.work import Resources
from raydd.store import events
from raydd.store.run import Run

LEARN = small_ld3m.PIXELS | {"chunk": 3, "lr_latent": 10.0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    from pipelines.conftest import write_tree

    return write_tree(tmp_path_factory.mktemp("together") / "tree")


@pytest.fixture(scope="module")
def experts(tree, tmp_path_factory):
    return small_ld3m.write_experts(tree, tmp_path_factory.mktemp("together") / "experts")


@pytest.mark.parametrize("lr_latent", [10.0, None], ids=["given rates", "measured rates"])
def test_two_ranks_commit_the_set_of_one_once(lr_latent, tree, experts, tmp_path, monkeypatch):
    learn = LEARN | {"experts": experts, "lr_latent": lr_latent}
    manifest = made(tree, tmp_path / "one", **learn)
    (unit,) = prepare(options(tree, tmp_path / "two"), method(**learn)).units
    ranks = Ranks(2)
    monkeypatch.setattr(shares, "dist", ranks)
    ranks.run(lambda rank: SharedUnit(unit).train("cpu", rank, 2))
    assert SharedUnit(unit).is_done()
    assert distill(options(tree, tmp_path / "two"), method(**learn), small_ld3m.LOCAL)["hashes"] == manifest["hashes"]
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "learned").iterdir()} for n in ("one", "two"))
    assert one == two and len(one) >= 3
    told = [event["event"] for event in events.read(Run(str(tmp_path / "two")))]
    assert told.count("class_committed") == 3 and told.count("unit_started") == 1
    assert told.count("rates_settled") == (lr_latent is None)


def test_a_rank_that_dies_costs_what_was_not_saved(tree, experts, tmp_path, monkeypatch):
    """Rank 1 is lost amid the third of four iterations; rank 0 has saved after each."""
    learn = LEARN | {"experts": experts, "iterations": 4}
    manifest = made(tree, tmp_path / "calm", **learn)
    (unit,) = prepare(options(tree, tmp_path / "lost"), method(**learn)).units
    monkeypatch.setattr(checkpoints.SaveClock, "due", lambda self: True)
    taken, gradients = [], Descent.gradients

    def dying(self, z, c, iteration):
        taken.append((self.shares.rank, iteration))
        if self.shares.rank == 1 and iteration == 2 and taken.count((1, 2)) == 1:
            raise RuntimeError("lost")
        return gradients(self, z, c, iteration)

    monkeypatch.setattr(Descent, "gradients", dying)
    for end in (pytest.raises((RuntimeError, threading.BrokenBarrierError)), contextlib.nullcontext()):
        ranks = Ranks(2)
        monkeypatch.setattr(shares, "dist", ranks)
        with end:
            ranks.run(lambda rank: SharedUnit(unit).train("cpu", rank, 2))
    for rank in (0, 1):
        assert [iteration for at, iteration in taken if at == rank] == [0, 1, 2, 2, 3]
    run = Run(str(tmp_path / "lost"))
    resumed = [event["step"] for event in events.read(run) if event["event"] == "unit_resumed"]
    assert resumed == [2] and not list((tmp_path / "lost" / "state").glob("class-*"))
    assert distill(options(tree, run.uri), method(**learn), small_ld3m.LOCAL)["hashes"] == manifest["hashes"]


def test_numbers_that_are_not_finite_are_no_reason_to_try_again(tree, experts, tmp_path, monkeypatch):
    (unit,) = prepare(options(tree, tmp_path / "run"), method(**LEARN, experts=experts)).units

    @dataclasses.dataclass(frozen=True)
    class Broken:
        name: str = "broken"

        def run(self, context):
            raise FloatingPointError("class 'ant', iteration 2: the loss is not finite")

    with pytest.raises(UserError, match="iteration 2: the loss is not finite"):
        SharedUnit(Broken()).train("cpu", 0, 2)
    assert SharedUnit(unit).name == unit.name and not SharedUnit(unit).is_done()


@pytest.mark.parametrize(
    ("ddp", "learn", "resources", "said"),
    [
        (0, {}, {}, "--ddp 0: must be at least 1"),
        (2, {}, {"executor": "local"}, "--ddp 2 needs --executor ray"),
        (2, {"loss": "dm"}, {}, "--ddp 2: ld3m makes its units alone; use --workers 2"),
        (3, {}, {}, "--ddp 3: the images make 2 chunks, one for each worker at most; use --ddp 2"),
    ],
)
def test_refused(ddp, learn, resources, said, tree, experts, tmp_path):
    switches = LEARN | ({} if "loss" in learn else {"experts": experts}) | learn
    with pytest.raises(UserError, match=said):
        distill(options(tree, tmp_path / "run"), method(**switches), Resources(**resources), ddp)
    assert not (tmp_path / "run").exists()
