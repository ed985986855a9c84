"""The doping model: the student that `evaluate` would train, kept; trained once, and resumed to the same weights."""

import dataclasses

import pytest
import torch

from raydd.distill.controls import ControlConfig
from raydd.pipelines import students
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.doping_model import DopingModel
from raydd.pipelines.labels import LabelSource
from raydd.pipelines.students import StudentUnit, load_training, resolve_protocol
from raydd.runtime.work import Context, Resources
from raydd.store.run import Run
from raydd.train import student as training


@pytest.fixture
def model(tree, tmp_path) -> DopingModel:
    """A model of four epochs on 3 images per class."""
    options = DistillOptions(data=str(tree), out=str(tmp_path / "base"), ipc=3, size=16)
    manifest = distill(options, Control("random", ControlConfig(labels="hard")), Resources(executor="local"))
    protocol = resolve_protocol("noaug:quick@4", manifest, "convnet3", flip=False, precision="fp32")
    return DopingModel(str(tmp_path / "out"), options.out, "images", protocol, "convnet3", 5, LabelSource("hard"))


def logits(model: DopingModel) -> torch.Tensor:
    train, _ = load_training(Run(model.base), students.distilled.read_manifest(Run(model.base)), model.protocol)
    return model.load().logits(train.images)


def test_it_is_the_student_that_evaluate_trains(model, tree, monkeypatch):
    kept = []
    inner = training.train_student
    monkeypatch.setattr(students, "train_student", lambda *a, **k: inner(*a, **k, keep=kept.append))
    unit = StudentUnit(model.base, str(tree), model.protocol, "convnet3", 5, LabelSource("hard"), 1, "val")
    unit.train("cpu")
    model.run(Context(say=lambda line: None))
    weights = model.load().model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in kept[0].state_dict().items())


def test_it_is_kept_with_what_must_be_known(model):
    assert not model.is_done()
    lines = []
    model.run(Context(say=lines.append))
    assert model.is_done() and lines[0].startswith("doping model convnet3: top-1 ")
    info = model.load().info
    assert (info.image_size, info.outputs, info.classes, info.norm) == (16, 3, ("0", "1", "2"), "instance")
    facts = model.facts()
    assert facts["weights"] == info.weights and 0 <= facts["fit"] <= 1 and facts["seed"] == 5
    assert not dataclasses.replace(model, seed=6).is_done()
    model.forget()
    assert not model.is_done()


def test_a_killed_training_goes_on_to_the_same_weights(model, tmp_path, monkeypatch):
    calm = dataclasses.replace(model, folder=str(tmp_path / "calm"))
    calm.run(Context())
    advance = training._Run.advance

    def stop(self):
        if self.step == 2:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(students, "SNAPSHOT_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            model.run(Context())
    assert (tmp_path / "out" / f"doping-{model.identity}" / "resume.safetensors").exists()
    steps = []
    monkeypatch.setattr(training._Run, "advance", lambda self: (steps.append(self.step), advance(self)))
    model.run(Context())
    assert steps == [2, 3]
    assert torch.equal(logits(model), logits(calm))
    assert not (tmp_path / "out" / f"doping-{model.identity}" / "resume.safetensors").exists()
