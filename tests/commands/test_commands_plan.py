"""`raydd plan` takes what `raydd distill` takes, and writes nothing but what it is asked to save."""

import re

import pytest
from commandline import done, refused, snapshot
from priors import write_tiny_prior

from raydd.commands.distill import METHODS
from raydd.evaluate.record import FULL

LOCAL = ("--executor", "local")
PLANNED = [name for name in METHODS if name != FULL]
OWN = {"--calibrate", "--no-calibrate", "--calibration", "--save-calibration"}


def option_names(*command: str) -> set[str]:
    return set(re.findall(r"(?<!\w)--[a-z][\w-]*", re.sub(r"'[^']*'", "", done(*command, "--help"))))


def defaults(*command: str) -> list[str]:
    """What the help says of every option and its default."""
    text = re.sub(r"[\s│─╭╮╰╯]+", " ", done(*command, "--help"))
    return [option.strip() for option in re.findall(r"--\w(?:(?! --)[^(])*\(default: [^)]*\)", text)]


@pytest.mark.parametrize("method", PLANNED)
def test_options_are_those_of_the_method(method):
    assert option_names("plan", method) == option_names("distill", method) | OWN
    plan, distill = defaults("plan", method), defaults("distill", method)
    assert len(distill) > 8 and set(distill) <= set(plan)


def test_presets_are_known():
    text = " ".join(done("plan", "infoutil", "--preset", "paper", "--help").split())
    assert "(default: captum)" in text
    assert "unknown preset 'papr': did you mean 'paper'" in refused("plan", "infoutil", "--preset", "papr")


def test_it_writes_nothing_but_a_calibration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prior = write_tiny_prior(tmp_path / "prior", tuple("0123456789"))
    before = snapshot(tmp_path)
    base = ("dsco", "--data", "digits", "--prior", prior, "--out", tmp_path / "run", "--ipc", 2, "--steps", 2, *LOCAL)
    small = ("--iterations", 1, "--rounds", 1, "--rows-per-image", 2)
    counted = done("plan", *base, *small, "--no-calibrate")
    assert "latents: 6 shards" in counted and "classes: 10 units" in counted
    assert done("plan", "distill", *base, *small, "--no-calibrate") == counted
    measured = done("plan", *base, *small, "--save-calibration", tmp_path / "here.json")
    assert "device hours" in measured and "measured here" in measured
    after = snapshot(tmp_path)
    assert after.pop("here.json") and after == before
    given = done("plan", *base, *small, "--ipc", 4, "--calibration", tmp_path / "here.json")
    assert f"given by {tmp_path}/here.json" in given and snapshot(tmp_path).keys() == {*before, "here.json"}


def test_what_is_done_is_not_planned(tmp_path):
    base = ("random", "--data", "digits", "--size", 8, "--ipc", 1, "--out", tmp_path / "run", *LOCAL)
    done("distill", *base, "--classes", "3,4")
    assert "classes: 8 units (2 are there already)" in done("plan", *base, "--no-calibrate")
    done("distill", *base)
    before = snapshot(tmp_path)
    idle = done("plan", *base, "--save-calibration", tmp_path / "here.json")
    assert "nothing is left to do" in idle and "--save-calibration has no effect" in idle
    assert "classes: 10 units" in done("plan", *base, "--force", "--no-calibrate") and snapshot(tmp_path) == before
    # A run of another configuration is refused before anything is measured, as `distill` refuses it.
    assert "ipc: 1 -> 2" in refused("plan", *base, "--ipc", 2)


REFUSED = [
    (("rando",), "unknown method 'rando': did you mean 'random'"),
    (("distill",), "unknown method ''"),
    ((FULL,), "full is a run without images: there is nothing to plan"),
    (("random", "--data", "digits"), "Missing from raydd plan random: --out"),
    (("random", "--data", "digits", "--out", "x", "--icp", "1"), "'raydd plan random --help' explains every option"),
    (("random", "--data", "/nowhere", "--out", "x", "--size", "8"), "/nowhere"),
    (("random", "--data", "digits", "--out", "x", "--calibration", "/nowhere.json"), "--calibration /nowhere.json"),
]


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("plan", *args)
    assert not list(tmp_path.iterdir())


def test_help_without_a_method():
    assert done("plan") == done("plan", "--help") and "--save-calibration" in done("plan")
