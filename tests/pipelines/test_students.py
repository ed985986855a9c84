"""A student as a unit: what it trains on, what its result depends on, and how a killed one goes on."""

import dataclasses
import json

import pytest
import torch

from raydd.distill.controls import ControlConfig
from raydd.distill.encode import resize
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.models.teacher import load_teacher
from raydd.pipelines import students
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill, reference
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.labels import LabelSource
from raydd.pipelines.students import StudentUnit, load_training, resolve_protocol
from raydd.runtime.work import Context, Resources
from raydd.store import distilled
from raydd.store.run import Run

LOCAL = Resources(executor="local")


@pytest.fixture
def make(tree, tmp_path, digits_teacher):
    """Distills the tree and gives the run and its manifest."""

    def run_of(method, name: str = "run", ipc: int = 2) -> tuple[Run, dict]:
        options = DistillOptions(data=str(tree), out=str(tmp_path / name), teacher=digits_teacher, ipc=ipc, size=16)
        manifest = reference(options) if method == "full" else distill(options, method, LOCAL)
        return Run(options.out), manifest

    return run_of


def unit_of(run: Run, manifest: dict, tree, name: str = "quick@3", seed: int = 0) -> StudentUnit:
    protocol = resolve_protocol(name, manifest, "convnet3", flip=False, precision="fp32")
    return StudentUnit(run.uri, str(tree), protocol, "convnet3", seed, LabelSource("hard"), manifest["revision"], "val")


def test_training_set_is_the_distilled_set(make, digits_teacher):
    run, manifest = make(InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch"))))
    protocol = resolve_protocol("soft", manifest, "convnet3", flip=True, precision="fp32")
    train, steps = load_training(run, manifest, protocol)
    assert steps is None and train.factor == 2 and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.images.shape == (6, 3, 16, 16) and train.soft_labels.shape == (6, 4, 3)
    stored = [image.soft_label for label in range(3) for image in distilled.read_class(run, label)]
    assert torch.equal(train.soft_labels.flatten(1), torch.tensor(stored))
    teacher = load_teacher(digits_teacher, early=True, classes=("0", "1", "2"))
    tiles = train.images[0][:, :8, 8:][None]
    torch.testing.assert_close(train.soft_labels[0, 1], teacher.logits(resize(tiles, 16))[0], atol=2e-2, rtol=2e-3)


def test_full_trains_the_source_for_the_steps_of_a_small_set(make):
    run, manifest = make("full", ipc=2)
    protocol = resolve_protocol("hard", manifest, "convnet3", flip=True, precision="fp32")
    train, steps = load_training(run, manifest, protocol)
    assert len(train) == 48 and steps == protocol.steps(6)
    small = resolve_protocol(
        "hard", make(Control("random", ControlConfig()), "r", 2)[1], "convnet3", flip=True, precision="fp32"
    )
    assert small.hash == protocol.hash


def test_digits_are_not_mirrored(make):
    _, manifest = make("full")
    flags = [
        resolve_protocol("soft", manifest, "convnet3", flip=f, precision="fp32").augmentation.flip
        for f in (True, False)
    ]
    assert flags == [True, False]


def test_identity_holds_what_the_result_depends_on(make, tree):
    unit = unit_of(*make(Control("random", ControlConfig())), tree)
    changes = [
        {"seed": 1},
        {"revision": 2},
        {"val_fingerprint": "other"},
        {"student": "resnet18_cifar"},
        {"labels": LabelSource("online", teacher_hash="a")},
        {"labels": LabelSource("online", teacher_hash="b")},
        {"label_seed": 1},
        {"views": "other"},
        {"protocol": dataclasses.replace(unit.protocol, epochs=4)},
    ]
    assert len({dataclasses.replace(unit, **change).identity for change in [{}, *changes]}) == len(changes) + 1
    moved = dataclasses.replace(unit, run_uri="/elsewhere", labels=LabelSource("hard", teacher="/other/place"))
    assert moved.identity == unit.identity


def test_result_proves_that_it_is_done(make, tree, tmp_path):
    unit = unit_of(*make(Control("random", ControlConfig())), tree)
    assert not unit.is_done()
    unit.run(Context())
    assert unit.is_done() and not dataclasses.replace(unit, revision=9).is_done()
    record = json.loads((tmp_path / "run" / "evaluation" / "seeds" / f"{unit.slug}.json").read_text())
    assert record["steps"] == 3 and record["seed"] == 0 and 0 <= record["last"] <= 1


def test_names_are_fit_for_files(make, tree):
    unit = unit_of(*make(Control("random", ControlConfig())), tree, "noaug:quick@3")
    unit = dataclasses.replace(unit, student="torchvision/vgg11")
    assert not set(unit.slug) & set('/\\:*?"<>|@ ')


def test_a_killed_student_goes_on_to_the_same_result(make, tree, monkeypatch):
    run, manifest = make(Control("random", ControlConfig()))
    whole = unit_of(run, manifest, tree).train("cpu")

    class Killed(Exception):
        pass

    monkeypatch.setattr(students, "SNAPSHOT_S", 0.0)
    advance = students.train_student.__globals__["_Run"].advance

    def advance_once(self):
        if self.step == 2:
            raise Killed
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(students.train_student.__globals__["_Run"], "advance", advance_once)
        with pytest.raises(Killed):
            unit_of(run, manifest, tree).train("cpu")
    unit = unit_of(run, manifest, tree)
    state = tree.parent / "run" / "state" / f"student-{unit.slug}.safetensors"
    assert state.exists()
    result = unit.train("cpu")
    assert (result.last, result.curve) == (whole.last, whole.curve)
    unit.commit(result)
    assert not state.exists() and unit.is_done()
