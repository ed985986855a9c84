"""Classes as units of work: half-done ones go on from their state; packs commit what was wanted, class by class."""

import dataclasses
import os

import pytest
import torch
from commandline import snapshot

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill
from raydd.runtime.work import Resources
from raydd.store import distilled, events
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())


@dataclasses.dataclass(frozen=True)
class Slow(Control):
    """Random images after three steps, each saved; class 1 fails in step 2 while the file `stop` is there."""

    stop: str = ""

    def build(self, job, label, tables, teacher, work):
        state = work.load_state()
        x = state.tensors["x"] if state else torch.zeros(2)
        for step in range(state.step if state else 0, 3):
            work.say(f"step {step}")
            if (label, step) == (1, 2) and os.path.exists(self.stop):
                raise ZeroDivisionError
            x = x + torch.rand(2, generator=torch_rng(job.seed, step))
            work.save_state({"x": x}, step + 1)
        return super().build(job, label, tables, teacher, work)


def half_done(ask, tmp_path, capsys) -> Slow:
    """A run whose class 1 stopped in its third step."""
    (tmp_path / "stop").touch()
    slow = Slow("random", ControlConfig(), str(tmp_path / "stop"))
    with pytest.raises(UserError, match="1' failed: ZeroDivisionError"):
        distill(ask("run"), slow, LOCAL)
    assert [path.name for path in (tmp_path / "run" / "state").glob("*.safetensors")] == ["class-1.safetensors"]
    (tmp_path / "stop").unlink()
    capsys.readouterr()
    return slow


def test_a_half_done_class_goes_on_from_its_state(ask, tmp_path, capsys):
    slow = half_done(ask, tmp_path, capsys)
    manifest = distill(ask("run"), slow, LOCAL)
    assert [line for line in capsys.readouterr().out.splitlines() if "step" in line] == ["1: step 2"]
    assert not list((tmp_path / "run" / "state").glob("*.safetensors"))
    assert manifest["hashes"] == distill(ask("calm"), slow, LOCAL)["hashes"]
    resumed = [event for event in events.read(Run(ask("run").out)) if event["event"] == "unit_resumed"]
    assert [(event["name"], event["step"]) for event in resumed] == [("1", 2)]


@pytest.mark.parametrize("changes", [{"force": True}, {"force": True, "classes": "1"}], ids=["all", "one"])
def test_force_forgets_a_half_done_class(ask, tmp_path, capsys, changes):
    slow = half_done(ask, tmp_path, capsys)
    distill(ask("run", **changes), slow, LOCAL)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1: ")]
    assert steps == ["1: step 0", "1: step 1", "1: step 2"]


@dataclasses.dataclass(frozen=True)
class Pairs(Control):
    """Random images, made two classes at a time; says in a file of the run what it was asked for."""

    def packs(self, job):
        return [(0, 1), (2,)]

    def cost(self, job, label):
        return float(3 - label)

    def build_pack(self, job, labels, wanted, tables, teacher, work):
        state = work.load_state()
        work.save_state({"x": torch.zeros(1)}, (state.step if state else 0) + 1)
        with open(os.path.join(job.out, "asked"), "a") as log:
            log.write(f"{work.unit} {labels} {wanted}\n")
        return [super(Pairs, self).build(job, label, tables, teacher, work) for label in labels]


PAIRS = Pairs("random", ControlConfig())


def asked(out) -> list[str]:
    return (out / "asked").read_text().splitlines()


def test_packs_give_the_classes_that_single_units_give(ask, tmp_path):
    packs, single = distill(ask("packs"), PAIRS, LOCAL), distill(ask("single"), RANDOM, LOCAL)
    assert packs["hashes"] == single["hashes"] and len(packs["hashes"]) == 3
    # The dearer pack first: two classes against one.
    assert asked(tmp_path / "packs") == ["0+1 (0, 1) (0, 1)", "2 (2,) (2,)"]
    made = [event["name"] for event in events.read(Run(ask("packs").out)) if event["event"] == "class_committed"]
    assert made == ["0", "1", "2"] and not list((tmp_path / "packs" / "state").glob("*"))


def test_of_a_pack_only_the_wanted_classes_are_committed(ask, tmp_path):
    part = distill(ask("run", classes="1"), PAIRS, LOCAL)
    assert part["counts"] == {"1": 1} and asked(tmp_path / "run") == ["0+1 (0, 1) (1,)"]
    before = snapshot(tmp_path / "run" / "distilled" / "label=1")
    whole = distill(ask("run"), PAIRS, LOCAL)
    assert asked(tmp_path / "run")[1:] == ["0+1 (0, 1) (0,)", "2 (2,) (2,)"]
    assert snapshot(tmp_path / "run" / "distilled" / "label=1") == before
    assert whole["hashes"] == distill(ask("at once"), PAIRS, LOCAL)["hashes"]


def test_a_class_of_a_pack_is_redone_alone(ask, tmp_path):
    old = distill(ask("run"), PAIRS, LOCAL)
    before = snapshot(tmp_path / "run" / "distilled")
    new = distill(ask("run", classes="0", force=True), PAIRS, LOCAL)
    after = snapshot(tmp_path / "run" / "distilled")
    assert {name.split("/")[0] for name in after if after[name] != before[name]} == {"label=0", "dataset.json"}
    assert new["hashes"] == old["hashes"] and new["revision"] > old["revision"]
    assert asked(tmp_path / "run")[2:] == ["0+1 (0, 1) (0,)"]


def test_a_pack_that_was_lost_between_two_commits_goes_on_with_the_second(ask, tmp_path, monkeypatch):
    commit, done = distilled.commit_class, []

    def lost(run, label, *rest, **facts):
        if label == 1 and not done:
            done.append(label)
            raise RuntimeError("lost")
        commit(run, label, *rest, **facts)

    monkeypatch.setattr(distilled, "commit_class", lost)
    with pytest.raises(UserError, match=r"0\+1' failed: RuntimeError: lost"):
        distill(ask("run"), PAIRS, LOCAL)
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "distilled").glob("label=*")) == ["label=0", "label=2"]
    assert [path.name for path in (run / "state").glob("*")] == ["class-0+1.safetensors"]
    before = snapshot(run / "distilled" / "label=0")
    manifest = distill(ask("run"), PAIRS, LOCAL)
    assert snapshot(run / "distilled" / "label=0") == before and not list((run / "state").glob("*"))
    assert asked(run)[2:] == ["0+1 (0, 1) (1,)"]
    assert manifest["hashes"] == distill(ask("calm"), PAIRS, LOCAL)["hashes"]
