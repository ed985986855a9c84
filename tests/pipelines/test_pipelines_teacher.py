"""A teacher from a source: trained once, left alone by the same command, refused to another recipe."""

import pytest
from commandline import snapshot

from raydd.errors import UserError
from raydd.models.teacher import load_teacher
from raydd.pipelines.teacher import TeacherOptions, train
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")


def options(tree, tmp_path, **changes) -> TeacherOptions:
    plain = {"arch": "convnet3", "width": 8, "size": 16, "epochs": 2, "early_epochs": 1, "batch": 16}
    return TeacherOptions(**({"data": str(tree), "out": str(tmp_path / "teacher")} | plain | changes))


def test_train_twice(tree, tmp_path):
    info = train(options(tree, tmp_path), LOCAL)
    assert info.classes == ("0", "1", "2") and info.epoch == 2 and info.val_count == 24
    files = {"teacher.json", "teacher.safetensors", "early.json", "early.safetensors"}
    before = snapshot(tmp_path / "teacher")
    assert set(before) == files
    assert train(options(tree, tmp_path), LOCAL) == info
    assert snapshot(tmp_path / "teacher") == before
    assert load_teacher(str(tmp_path / "teacher"), early=True).info.epoch == 1


def test_another_recipe_is_refused_unless_forced(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    before = snapshot(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"another recipe \(epochs: 2 -> 3\)"):
        train(options(tree, tmp_path, epochs=3), LOCAL)
    assert snapshot(tmp_path / "teacher") == before
    assert train(options(tree, tmp_path, epochs=3, force=True), LOCAL).epoch == 3


def test_sources_that_do_not_fit(tree, tmp_path):
    with pytest.raises(UserError, match="overlaps the training source"):
        train(options(tree, tmp_path, val=str(tree / "train")), LOCAL)
    with pytest.raises(UserError, match="3 classes but digits has 10"):
        train(options(tree, tmp_path, val="digits"), LOCAL)
    assert not (tmp_path / "teacher").exists()


def test_a_network_that_does_not_fit_the_size_is_refused_at_once(tree, tmp_path):
    options = TeacherOptions(data=str(tree), out=str(tmp_path / "teacher"), arch="vgg11_bn", size=16)
    with pytest.raises(UserError, match="vgg11_bn does not take images of 16 px"):
        train(options, Resources(executor="local"))
    assert not (tmp_path / "teacher").exists()
