"""Evaluations that cannot be: refused in one line before a student is trained, and nothing is written."""

import pytest
from commandline import snapshot

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.evaluate import evaluate
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())

REFUSALS = [
    ({"protocol": "sfot"}, "unknown protocol 'sfot': did you mean 'soft'"),
    ({"protocol": "soft@0"}, "after @ stands a number of epochs"),
    ({"students": "convnet33x"}, "unknown network 'convnet33x': did you mean 'convnet3'"),
    ({"students": "convnet3,convnet5"}, "--students convnet5 does not fit .*run: convnet5 halves the image 5 times"),
    ({"seeds": 0}, "--seeds 0: must be at least 1"),
    ({"ddp": 2}, "--ddp 2 needs --executor ray"),
    ({"labels": "patch", "protocol": "soft"}, "the run stores no patch labels"),
    ({"labels": "views", "protocol": "soft"}, "holds no stored views"),
    ({"labels": "online"}, "--labels online has no effect on protocol hard@2"),
    ({"labels": "hard", "protocol": "soft"}, "protocol soft needs soft labels, not --labels hard"),
    ({"protocol": "soft", "teacher": "/nowhere"}, "no early teacher in /nowhere"),
    ({"val": "digits"}, "3 classes but digits has 10"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_write_nothing(make, judge, tmp_path, changes, message):
    run = make(RANDOM)
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match=message) as error:
        evaluate(judge(run, **changes), LOCAL)
    assert "\n" not in str(error.value) and snapshot(tmp_path / "run") == before


def test_training_images_are_no_validation_images(make, judge, tree):
    with pytest.raises(UserError, match="overlaps the training source"):
        evaluate(judge(make(RANDOM), val=str(tree / "train")), LOCAL)


def test_runs_without_labels_or_classes(make, judge, tmp_path):
    with pytest.raises(UserError, match="soft labels need a teacher and the run records none: add --teacher"):
        evaluate(judge(make(RANDOM, "bare", teacher=None), protocol="soft"), LOCAL)
    with pytest.raises(UserError, match=r"lacks 2 of 3 classes \(first: '0'\)"):
        evaluate(judge(make(RANDOM, "part", classes="1")), LOCAL)
    with pytest.raises(UserError, match="holds no distilled set"):
        evaluate(judge(str(tmp_path / "nothing")), LOCAL)
