"""The controls as methods: which images they take, and from which candidates."""

import pytest

from raydd.distill.candidates import candidates
from raydd.distill.controls import ControlConfig, choose_by_features
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.request import open_job
from raydd.runtime.work import Resources
from raydd.store import distilled, scores
from raydd.store.run import Run

LOCAL = Resources(executor="local")


def options(tree, tmp_path, teacher=None, **changes) -> DistillOptions:
    return DistillOptions(data=str(tree), out=str(tmp_path / "run"), teacher=teacher, size=16, **changes)


def keys_of(tmp_path, label: int) -> list[str]:
    return [image.source_keys[0] for image in distilled.read_class(Run(str(tmp_path / "run")), label)]


def test_random_takes_the_keyed_sample_without_scores_or_teacher(tree, tmp_path):
    asked = options(tree, tmp_path, ipc=4)
    manifest = distill(asked, Control("random", ControlConfig()), LOCAL)
    job = open_job(asked)
    for label, name in enumerate(job.classes):
        assert keys_of(tmp_path, label) == candidates(job.keys(label), name, 4, 0)
    assert manifest["labels"]["form"] == "hard" and manifest["scores"] is None
    assert not (tmp_path / "run" / "scores").exists()


@pytest.mark.parametrize("name", ["kmeans", "herding"])
def test_choice_by_features(tree, tmp_path, digits_teacher, name):
    distill(options(tree, tmp_path, digits_teacher, ipc=3), Control(name, ControlConfig()), LOCAL)
    table = scores.read_label(Run(str(tmp_path / "run")), 1)
    wanted = choose_by_features(name, table["key"].to_pylist(), table["features"].to_pylist(), "1", 3, 0)
    assert keys_of(tmp_path, 1) == wanted and len(set(wanted)) == 3


def test_candidates_limit_what_is_scored(tree, tmp_path, digits_teacher):
    distill(options(tree, tmp_path, digits_teacher, ipc=3), Control("herding", ControlConfig(mipc=5)), LOCAL)
    assert scores.read_label(Run(str(tmp_path / "run")), 0).num_rows == 5


def test_impossible_requests(tree, tmp_path, digits_teacher):
    with pytest.raises(UserError, match="--mipc 2: fewer candidates than --ipc 3"):
        distill(options(tree, tmp_path, digits_teacher, ipc=3), Control("kmeans", ControlConfig(mipc=2)), LOCAL)
    with pytest.raises(UserError, match="need a teacher"):
        distill(options(tree, tmp_path, ipc=3), Control("kmeans", ControlConfig()), LOCAL)
    with pytest.raises(UserError, match="--ipc 17 needs 17 source images per class, but class '0' has 16"):
        distill(options(tree, tmp_path, ipc=17), Control("random", ControlConfig()), LOCAL)
    assert not (tmp_path / "run").exists()
