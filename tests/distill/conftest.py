"""Small teachers with known answers, and a small source of known images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raydd.data.source import open_source
from raydd.keyed import numpy_rng
from raydd.models.checkpoint import ModelInfo
from raydd.models.teacher import as_teacher

SIZE = 16


@pytest.fixture
def make_teacher():
    """Builds a teacher with seeded weights and any input size, or wraps a given network."""

    def make(classes: int = 3, model: nn.Module | None = None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
            model = model or nn.Sequential(*layers, nn.Linear(80, classes))
        info = ModelInfo(arch="test", image_size=SIZE, outputs=classes, mean=(0.5, 0.4, 0.6), std=(0.2, 0.25, 0.3))
        return as_teacher(model, info)

    return make


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path):
    """An ImageFolder of 3 classes with 9 noise images of 16 px each, opened."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(9):
            pixels = numpy_rng("folder", label, i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            (tmp_path / "set" / name / f"{i}.png").write_bytes(png(pixels))
    return open_source(str(tmp_path / "set"))
