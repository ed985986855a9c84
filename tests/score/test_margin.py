"""Clarity: hand-made logits give hand-computed values; broken logits give NaN; batches and padding change nothing."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from raydd.evaluate.labels import HardLabels
from raydd.evaluate.protocols import resolve
from raydd.keyed import smallest
from raydd.models.checkpoint import ModelInfo
from raydd.models.normalization import Normalization
from raydd.models.registry import build_model
from raydd.models.teacher import as_teacher
from raydd.score.margin import ClarityScorer, clarity
from raydd.train.sets import TrainSet, ValSet
from raydd.train.student import train_student

NORM = Normalization((0.3,) * 3, (0.38,) * 3)

# Softmax of these: (1/2, 1/4, 1/4), (1/10, 1/5, 7/10), (1/3, 1/3, 1/3).
LOGITS = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 7.0], [5.0, 5.0, 5.0]]).log()


def test_hand_computed_values():
    assert clarity(LOGITS, torch.tensor([0, 0, 0])).tolist() == pytest.approx([1 / 4, -6 / 10, 0.0], abs=1e-6)
    assert clarity(LOGITS, torch.tensor([1, 2, 1])).tolist() == pytest.approx([-1 / 4, 5 / 10, 0.0], abs=1e-6)
    sure = torch.tensor([[0.0, 60.0], [60.0, 0.0]])
    assert clarity(sure, torch.tensor([1, 1])).tolist() == pytest.approx([1.0, -1.0])


def test_a_teachers_logits_stand_for_its_best_class():
    teacher = torch.tensor([[0.0, 9.0, 1.0], [0.0, 1.0, 9.0], [9.0, 1.0, 0.0]])
    assert torch.equal(clarity(LOGITS, teacher), clarity(LOGITS, torch.tensor([1, 2, 0])))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_either_side_is_nan(bad):
    logits, teacher = LOGITS.clone(), LOGITS.clone()
    logits[0, 2] = bad
    teacher[1, 0] = bad
    assert clarity(logits, torch.tensor([0, 0, 0])).isnan().tolist() == [True, False, False]
    assert clarity(logits, teacher).isnan().tolist() == [True, True, False]


def test_half_precision_logits_are_taken_to_float():
    values = clarity(LOGITS.half(), torch.tensor([0, 0, 0]))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([1 / 4, -6 / 10, 0.0], abs=1e-3)


@pytest.mark.parametrize("shapes", [((3, 3), (2,)), ((3, 3), (3, 2)), ((3, 1), (3,)), ((3,), (3,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="logits"):
        clarity(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64))


def network(seed: int):
    info = ModelInfo(arch="convnet3", image_size=8, outputs=4, width=4)
    return as_teacher(build_model("convnet3", num_classes=4, image_size=8, width=4, seed=seed), info)


def test_a_table_holds_both_targets_row_by_row():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    labels, keys = [3, 0, 1, 2, 3], list("edcba")
    student, teacher = network(0), network(1)
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    for batch in (2, 64):
        table = ClarityScorer(student, teacher, batch=batch)(images, labels, keys)
        assert table.column_names == ["key", "label", "clarity_teacher", "clarity_label"]
        assert table["key"].to_pylist() == keys and table["label"].to_pylist() == labels
        for name, target in (("teacher", teacher.logits(pixels)), ("label", torch.tensor(labels))):
            expected = clarity(student.logits(pixels), target).tolist()
            assert table[f"clarity_{name}"].to_pylist() == pytest.approx(expected, abs=1e-5)
    alone = ClarityScorer(student, None)(images, labels, keys)
    assert alone.column_names == ["key", "label", "clarity_label"]


def test_planted_hard_images_have_the_lowest_clarity():
    """20 digits per class train a small network; 5 % of the rest are blended half with another class (chance: 10 %)."""
    data = load_digits()
    images = torch.from_numpy((data.images * 255 / 16).round().astype("uint8"))[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target).long()
    order = smallest([str(i) for i in range(len(labels))], len(labels), "planted")
    first = [i for label in range(10) for i in [j for j in order if labels[j] == label][:20]]
    rest = [i for i in order if i not in set(first)]
    planted = rest[: len(rest) // 20]
    blended = images.clone()
    for i in planted:
        other = next(j for j in reversed(rest) if labels[j] == (labels[i] + 1 + i % 8) % 10)
        blended[i] = ((images[i].int() + images[other].int()) // 2).byte()

    student = train(images[first], labels[first])
    pixels = blended[rest].permute(0, 2, 3, 1).numpy()
    table = ClarityScorer(student, None)(pixels, labels[rest].tolist(), [str(i) for i in rest])
    values = dict(zip(rest, table["clarity_label"].to_pylist()))
    lowest = sorted(rest, key=values.__getitem__)[: len(rest) // 10]
    # 82 % seen.
    assert len(set(lowest) & set(planted)) >= 0.7 * len(planted)


def train(images: torch.Tensor, labels: torch.Tensor):
    own = TrainSet(images, labels, [f"{i:05d}" for i in range(len(images))])
    plan = resolve("noaug:hard@40", num_classes=10, ipc=20, image_size=8)
    plan, kept = dataclasses.replace(plan, norm="batch", checks=(1.0,)), []
    options = {"num_classes": 10, "normalization": NORM, "labels": HardLabels(own, 10), "keep": kept.append}
    train_student(own, ValSet(images[:1], labels[:1]), plan, "convnet2", 0, **options)
    return as_teacher(kept[0], ModelInfo(arch="convnet2", image_size=8, outputs=10, mean=NORM.mean, std=NORM.std))
