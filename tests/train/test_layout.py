"""Networks with instance norm keep the plain layout on a CPU; all others are channels_last."""

import torch

from raydd.models.registry import build_model
from raydd.train.layout import memory_format


def test_layouts():
    instance, batch = (build_model("convnet3", num_classes=10, image_size=32, norm=n) for n in ("instance", "batch"))
    assert memory_format(instance, torch.device("cpu")) == torch.contiguous_format
    assert memory_format(batch, torch.device("cpu")) == torch.channels_last
    assert memory_format(instance, torch.device("cuda")) == torch.channels_last
