"""Stored views train students as the teacher itself does, and belong to one set, protocol and teacher."""

import json
import shutil

import pytest

from raydd.distill.controls import ControlConfig
from raydd.errors import UserError
from raydd.pipelines import job
from raydd.pipelines.controls import Control
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.store_labels import store_views
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())


def test_stored_views_give_the_online_result(make, judge, tmp_path, teacher):
    run = make(RANDOM)
    options = judge(run, protocol="hard,soft@3")
    (online,) = evaluate(judge(run, protocol="soft@3"), LOCAL)
    size = store_views(run, options, "fp32")
    assert size > 3 * 6 * 3 * 4
    shutil.rmtree(teacher)
    job._load.cache_clear()
    (stored,) = evaluate(judge(run, protocol="soft@3", labels="views"), LOCAL)
    same = ("last", "best", "curve", "per_class", "steps")
    assert all(getattr(stored.seeds[0], name) == getattr(online.seeds[0], name) for name in same)
    assert stored.seeds[0].teacher_forwards == 0 < online.seeds[0].teacher_forwards
    assert stored.labels["teacher_hash"] == online.labels["teacher_hash"] and stored.labels["form"] == "views"
    assert stored.bytes == online.bytes | {"label": size, "teacher": 0}


def test_views_of_other_images_are_refused(make, judge, tmp_path):
    run = make(RANDOM)
    store_views(run, judge(run, protocol="soft@2"), "fp16")
    with pytest.raises(UserError, match=r"stored views .* were made with protocol"):
        evaluate(judge(run, protocol="soft@3", labels="views"), LOCAL)
    record = tmp_path / "run" / "distilled" / "views" / "views.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"teacher": "other"}))
    with pytest.raises(UserError, match="were made with teacher other"):
        evaluate(judge(run, protocol="soft@2", labels="views"), LOCAL)


def test_hard_labels_are_not_stored(make, judge):
    with pytest.raises(UserError, match="protocol hard needs no soft labels"):
        store_views(make(RANDOM), judge("", protocol="hard"), "fp16")
