"""What a doping refuses before it trains or writes anything, and what its configuration holds."""

import pytest

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill, reference
from raydd.pipelines.dope_request import DopeOptions, prepare
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")


@pytest.fixture
def ask(tree, tmp_path, digits_teacher):
    """A set of 2 images per class of the tree's 16, and options to dope it."""
    plain = {"data": str(tree), "out": str(tmp_path / "base"), "teacher": digits_teacher, "ipc": 2, "size": 16}
    distill(DistillOptions(**plain), Control("random", ControlConfig()), LOCAL)

    def options(**changes) -> DopeOptions:
        budget = {} if {"per_class", "fraction"} & changes.keys() else {"per_class": 2}
        return DopeOptions(**({"run": plain["out"], "out": str(tmp_path / "doped")} | budget | changes))

    return options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": None}, "give one budget: --per-class N, or --fraction F"),
        ({"per_class": 2, "fraction": 0.5}, "give one budget"),
        ({"per_class": 0}, "--per-class 0: must be at least 1"),
        ({"per_class": 17}, "51 originals are to be added but only 48"),
        ({"per_class": 10, "start": 7}, "30 originals .* only 27 .* behind the first 7 per class.*--start"),
        ({"fraction": 1.5}, r"--fraction 1.5: must lie above 0 and not above 1"),
        ({"fraction": 0.1}, r"--fraction 0.1: 5 of 48 .* fewer than the 6 .* above 0.125"),
        ({"start": -1}, "--start -1: must be at least 0"),
        ({"scope": "clas"}, "unknown scope 'clas': did you mean 'class'"),
        ({"score": "clearness"}, "unknown score 'clearness'"),
        ({"student": "convnet_3"}, "unknown network 'convnet_3'"),
        ({"protocol": "softt"}, "unknown protocol 'softt'"),
        ({"run": "/nowhere"}, "/nowhere holds no distilled set"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(ask, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(ask(**changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "doped").exists()


def test_the_run_itself_another_source_and_full_are_refused(ask, tree, tmp_path, digits_teacher):
    with pytest.raises(UserError, match="is the run itself"):
        prepare(ask(out=str(tmp_path / "base") + "/"))
    with pytest.raises(UserError, match=r"is not the source that .*base was distilled from"):
        prepare(ask(data=str(tree / "val")))
    full = {"data": str(tree), "out": str(tmp_path / "full"), "teacher": digits_teacher, "ipc": 2, "size": 16}
    reference(DistillOptions(**full))
    with pytest.raises(UserError, match="holds no images"):
        prepare(ask(run=full["out"]))


def test_an_unfinished_set_is_refused(ask, tmp_path):
    options = ask()
    (tmp_path / "base" / "distilled" / "dataset.json").write_text(
        (tmp_path / "base" / "distilled" / "dataset.json").read_text().replace('"2": 2', '"x": 2')
    )
    with pytest.raises(UserError, match="lacks 1 of 3 classes"):
        prepare(options)


def test_the_defaults(ask):
    doping = prepare(ask())
    assert doping.quotas == [2, 2, 2] and doping.column == "clarity_teacher"
    assert doping.model.student == "convnet3" and doping.model.protocol.name == "soft"
    assert doping.config["doping"]["order"] == "lowest"
    assert prepare(ask(score="loss")).config["doping"]["order"] == "highest"
    assert prepare(ask(score="margin")).config["doping"]["order"] == "lowest"
    assert prepare(ask(target="label")).column == "clarity_label" and prepare(ask(score="loss")).column == "loss"


def test_the_final_size_decides_the_label_teacher(ask):
    """Up to 10 images per class the early teacher labels, above it the converged one (pipelines/labels.py)."""
    assert prepare(ask(per_class=8)).labels["early"] and not prepare(ask(per_class=9)).labels["early"]


def test_two_fractions_have_one_model_and_other_recipes_have_others(ask):
    first = prepare(ask()).model.identity
    assert prepare(ask(fraction=0.5, scope="global", start=1)).model.identity == first
    changes = ({"seed": 1}, {"student": "convnet4"}, {"protocol": "hard"}, {"flip": False}, {"protocol": "soft@7"})
    others = {prepare(ask(**change)).model.identity for change in changes}
    assert len(others | {first}) == 1 + len(changes)
