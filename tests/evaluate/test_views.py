"""Stored views: training from fp32 ones equals training online bit for bit; codecs' errors and bytes; any mismatch is
refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from raydd.errors import UserError
from raydd.evaluate import views
from raydd.evaluate.labels import OnlineLabels
from raydd.evaluate.protocols import resolve
from raydd.models.normalization import Normalization
from raydd.models.registry import build_model
from raydd.train.student import Snapshots, TrainSet, ValSet, train_student

NORM = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
COUNT, CLASSES, SIZE = 30, 5, 8


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def teacher():
    model = build_model("convnet1", num_classes=CLASSES, image_size=SIZE, norm="batch", seed=7).eval()
    return SimpleNamespace(model=model, info=SimpleNamespace(mean=NORM.mean, std=NORM.std), hash="abc")


def train_set(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return TrainSet(images, torch.arange(COUNT) % CLASSES, [f"{i:03d}" for i in range(COUNT)], 2)


def protocol(**changes):
    plan = resolve("soft", num_classes=CLASSES, ipc=6, image_size=SIZE, factor=2)
    return dataclasses.replace(plan, **({"epochs": 4, "batch": 12} | changes))


def student(labels, seed=3, **options):
    train = train_set()
    val = ValSet(train.images, train.labels)
    common = {"num_classes": CLASSES, "normalization": NORM, "labels": labels}
    return train_student(train, val, protocol(), "convnet1", seed, **common, **options)


def write(path, codec="fp32", seed=3, **options):
    views.write_views(str(path), train_set(), protocol(), teacher(), seed, normalization=NORM, codec=codec, **options)
    return lambda **o: views.open_views(str(path), train_set(), protocol(), **({"normalization": NORM} | o))


def final_weights(labels, seed=3):
    kept = []
    student(labels, seed, state=Snapshots(lambda: None, kept.append, every_s=0))
    return kept[-1]


@pytest.mark.parametrize("part_bytes", [1, 1 << 20])
def test_training_from_views_equals_online_bit_for_bit(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(views, "PART_BYTES", part_bytes)
    stored = write(tmp_path)()
    assert len(list(tmp_path.glob("part-*"))) == (4 if part_bytes == 1 else 1)
    first, second = final_weights(stored), final_weights(OnlineLabels(teacher(), NORM))
    names = [name for name in first if name != "record"]
    assert names and all(torch.equal(first[name], second[name]) for name in names)


def test_the_student_seed_sets_the_start_and_the_label_seed_the_views(tmp_path):
    """Stored views serve every student seed; each starts elsewhere but sees the same views."""
    stored = write(tmp_path)()
    first, second = final_weights(stored, 3), final_weights(stored, 4)
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("net."))
    result = student(stored, 4)
    assert result.teacher_forwards == 0 and student(OnlineLabels(teacher(), NORM)).teacher_forwards == 4 * COUNT


@pytest.mark.parametrize(("codec", "size", "tolerance"), [("fp32", 4, 0), ("fp16", 2, 1e-3), ("int8", 1, 5e-3)])
def test_codecs(codec, size, tolerance):
    logits = 10 * torch.randn(3, 7, 100, generator=torch.Generator().manual_seed(0))
    stored = views.encode(logits, codec)
    spread = (logits.amax(-1) - logits.amin(-1))[..., None]
    assert ((views.decode(stored) - logits).abs() <= tolerance * spread).all()
    total = sum(t.numel() * t.element_size() for t in stored.values())
    assert total == 21 * (100 * size + (4 if codec == "int8" else 0))


def test_int8_of_equal_logits():
    logits = torch.full((2, 5), 3.0)
    assert torch.equal(views.decode(views.encode(logits, "int8")), logits)


def test_any_mismatch_is_refused(tmp_path):
    opened = write(tmp_path, "fp16")
    assert opened(teacher_hash="abc", seed=3).record.codec == "fp16"
    for options, field in (
        ({"teacher_hash": "xyz"}, "teacher abc"),
        ({"seed": 4}, "label_seed 3"),
        ({"normalization": Normalization((0.0,) * 3, (1.0,) * 3)}, "normalization"),
    ):
        with pytest.raises(UserError, match=field):
            opened(**options)
    with pytest.raises(UserError, match="protocol"):
        views.open_views(str(tmp_path), train_set(), protocol(batch=10), normalization=NORM)
    with pytest.raises(UserError, match="images"):
        views.open_views(str(tmp_path), train_set(1), protocol(), normalization=NORM)


def test_too_few_epochs_and_no_views(tmp_path):
    stored = write(tmp_path, epochs=2)()
    with pytest.raises(UserError, match="cover 2 epochs"):
        student(stored)
    with pytest.raises(UserError, match="no stored views"):
        views.open_views(str(tmp_path / "none"), train_set(), protocol(), normalization=NORM)
