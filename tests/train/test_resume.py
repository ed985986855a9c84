"""A stored training is found again with its epoch and tensors, and never continues another one."""

import pytest
import torch

from raydd.errors import UserError
from raydd.models.normalization import IMAGENET
from raydd.models.registry import build_model
from raydd.train.classifier import ClassifierTraining, Optimization
from raydd.train.resume import restore_training, save_training


def training():
    model = build_model("convnet1", num_classes=2, image_size=8, width=4)
    images = torch.arange(4 * 3 * 64, dtype=torch.uint8).view(4, 3, 8, 8)
    return ClassifierTraining(model, Optimization(2, 2, 0.1), IMAGENET, "cpu", images, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_round_trip(where, tmp_path):
    uri = str(tmp_path / "r.safetensors") if where == "disk" else "memory://resume/r.safetensors"
    first, second = training(), training()
    next(first.epochs())
    assert not restore_training(uri, second, "me")
    save_training(uri, first, "me")
    assert restore_training(uri, second, "me") and second.epoch == 1
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())


def test_another_training_is_refused(tmp_path):
    uri = str(tmp_path / "r.safetensors")
    save_training(uri, training(), "me")
    with pytest.raises(UserError, match="another recipe"):
        restore_training(uri, training(), "you")
