"""`train_teacher` on real digits: it learns, records what it did, survives a kill with the same weights, never mixes
recipes, and its early teacher follows InfoUtil's recipe."""

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits

from raydd.errors import UserError
from raydd.models.audit import measure_teacher
from raydd.models.checkpoint import read_info, read_weights, weights_hash
from raydd.models.normalization import measure
from raydd.models.teacher import load_teacher
from raydd.train.teacher import TeacherRecipe, early_recipe, train_teacher

NAMES = tuple("0123456789")
RECIPE = TeacherRecipe("convnet2", 8, epochs=3, early_epochs=0, batch=16, width=32, augment="none", flip=False)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target)
    return images[:600], labels[:600], images[-300:], labels[-300:], NAMES


class Killed(Exception):
    pass


def kill_after(epoch):
    def progress(facts):
        if facts.get("epoch") == epoch:
            raise Killed

    return progress


def test_learns_and_records_what_it_did(digits, tmp_path):
    facts = []
    recipe = dataclasses.replace(RECIPE, early_epochs=1)
    info = train_teacher(
        *digits, recipe, str(tmp_path), source="f00", val_source="digits", keep_epochs=(1,), progress=facts.append
    )
    assert info.top1 > 0.85
    assert (info.epoch, info.early, info.classes, info.source, info.val_count) == (3, False, NAMES, "f00", 300)
    assert (info.mean, info.std) == (measure(digits[0]).mean, measure(digits[0]).std)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{name}.{suffix}" for name in ("teacher", "early", "epoch-1") for suffix in ("safetensors", "json")
    )
    teacher, early = load_teacher(str(tmp_path)), load_teacher(str(tmp_path), early=True)
    report = measure_teacher(teacher, digits[2:4])
    assert (report.top1, report.entropy) == (info.top1, info.label_entropy)
    assert early.info.early and early.info.epoch == 1 and early.info.recipe["schedule"] == "constant"
    snapshot = read_info(str(tmp_path / "epoch-1.json"))
    assert snapshot.early and snapshot.epoch == 1 and snapshot.recipe == info.recipe
    assert [f["epoch"] for f in facts if f["model"] == "teacher" and "epoch" in f] == [1, 2, 3]
    assert facts[-1] == {"model": "teacher", "top1": info.top1, "label_entropy": info.label_entropy}


@pytest.mark.parametrize("killed", ["teacher", "early"])
def test_killed_training_ends_with_the_same_weights(digits, tmp_path, killed):
    recipe = dataclasses.replace(RECIPE, epochs=2, early_epochs=2, augment="pad_crop", flip=True)
    data = (digits[0][:100], digits[1][:100], *digits[2:])
    whole = train_teacher(*data, recipe, str(tmp_path / "whole"))

    def progress(facts):
        if facts["model"] == killed and facts.get("epoch") == 1:
            raise Killed

    with pytest.raises(Killed):
        train_teacher(*data, recipe, str(tmp_path / "part"), progress=progress)
    assert (tmp_path / "part" / f"resume-{killed}.safetensors").exists()
    epochs = []
    resumed = train_teacher(*data, recipe, str(tmp_path / "part"), progress=lambda f: epochs.append(f.get("epoch")))
    assert epochs.count(1) == (0 if killed == "teacher" else 1)
    assert resumed == whole
    for name in ("teacher", "early"):
        states = [read_weights(str(tmp_path / where / f"{name}.safetensors")) for where in ("whole", "part")]
        assert weights_hash(states[0]) == weights_hash(states[1])


def test_the_same_command_again_does_nothing_and_another_recipe_is_refused(digits, tmp_path):
    recipe, out = dataclasses.replace(RECIPE, epochs=1), str(tmp_path)
    first = train_teacher(*digits, recipe, out)
    epochs = []
    assert train_teacher(*digits, recipe, out, progress=epochs.append) == first and not epochs
    other = dataclasses.replace(recipe, seed=1)
    with pytest.raises(UserError, match=r"another recipe \(seed: 0 -> 1\)"):
        train_teacher(*digits, other, out)
    with pytest.raises(UserError, match="another recipe"):
        train_teacher(*digits, recipe, out, source="other")
    assert train_teacher(*digits, other, out, force=True).weights != first.weights


def test_half_done_training_of_another_recipe_is_refused_unless_forced(digits, tmp_path):
    with pytest.raises(Killed):
        train_teacher(*digits, RECIPE, str(tmp_path), progress=kill_after(1))
    other = dataclasses.replace(RECIPE, epochs=1)
    with pytest.raises(UserError, match="half-done"):
        train_teacher(*digits, other, str(tmp_path))
    assert train_teacher(*digits, other, str(tmp_path), force=True).epoch == 1


def test_early_recipe():
    recipe = TeacherRecipe("resnet18_cifar", 32, seed=4, norm="instance")
    cifar = early_recipe(recipe, 50_000)
    assert (cifar.epochs, cifar.lr, cifar.batch, cifar.weight_decay) == (10, 0.001, 256, 1e-4)
    assert (cifar.momentum, cifar.schedule, cifar.augment) == (0.9, "constant", "resized_crop")
    assert (cifar.arch, cifar.seed, cifar.norm) == ("resnet18_cifar", 4, "instance")
    assert early_recipe(dataclasses.replace(recipe, image_size=128), 9_469).lr == 0.01
    assert early_recipe(recipe, 1_500).batch == 64


def test_defaults_by_network_and_size():
    def rate(arch):
        return TeacherRecipe(arch, 64).optimization().lr

    assert (rate("convnet4"), rate("resnet18"), rate("alexnet_dd"), rate("vit_dd")) == (0.02, 0.05, 0.01, 0.01)
    assert TeacherRecipe("convnet3", 32).optimization().augment == "pad_crop"
    assert TeacherRecipe("convnet5", 128).optimization().augment == "resized_crop"


def test_what_does_not_fit_is_one_line(digits, tmp_path):
    images, labels, val_images, val_labels, names = digits
    out = str(tmp_path)
    with pytest.raises(UserError, match="recipe works at 16 px"):
        train_teacher(*digits, dataclasses.replace(RECIPE, image_size=16), out)
    with pytest.raises(UserError, match="labels run from 0 to 9 but there are 9 class names"):
        train_teacher(images, labels, val_images, val_labels, names[:9], RECIPE, out)
    with pytest.raises(UserError, match="must be at least 1"):
        train_teacher(*digits, dataclasses.replace(RECIPE, epochs=0), out)
    with pytest.raises(UserError, match="cannot keep epoch 9 of 3"):
        train_teacher(*digits, RECIPE, out, keep_epochs=(9,))
    with pytest.raises(UserError, match="did you mean 'convnet3'"):
        train_teacher(*digits, dataclasses.replace(RECIPE, arch="covnet3"), out)
    with pytest.raises(ValueError, match="uint8"):
        train_teacher(images.float(), labels, val_images, val_labels, names, RECIPE, out)
