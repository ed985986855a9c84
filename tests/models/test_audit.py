"""The teacher's check: accuracies, entropy and the best assignment by brute force, and every branch of the verdict."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.models.audit import TeacherReport, measure_teacher, verdict
from raydd.models.checkpoint import ModelInfo
from raydd.models.teacher import as_teacher


class Reader(nn.Module):
    """Logits are the first K pixels of the image, so a test can write a teacher's answers into its images."""

    def __init__(self, outputs):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(outputs))

    def forward(self, images):
        return images.flatten(1)[:, : len(self.scale)] * self.scale


def reader(outputs, classes=()):
    info = ModelInfo(arch="reader", image_size=4, outputs=outputs, classes=classes, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    return as_teacher(Reader(outputs), info)


def answers(logits):
    images = torch.zeros(len(logits), 3, 4, 4, dtype=torch.uint8)
    images.flatten(1)[:, : len(logits[0])] = torch.tensor(logits, dtype=torch.uint8)
    return images


def test_report_against_brute_force():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 9, (300, 4)), torch.from_numpy(rng.integers(0, 4, 300))
    report = measure_teacher(reader(4), (answers(logits), labels))
    predicted = torch.tensor(logits).argmax(1)
    best = max(
        sum((predicted == order[k])[labels == k].sum().item() for k in range(4))
        for order in itertools.permutations(range(4))
    )
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert report.top1 == pytest.approx((predicted == labels).float().mean().item())
    assert report.best_assignment_top1 == pytest.approx(best / 300)
    assert report.entropy == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    assert report.chance == 0.25 and report.count == 300


def test_batches_do_not_matter():
    rng = np.random.default_rng(1)
    images, labels = answers(rng.integers(0, 9, (700, 3))), torch.from_numpy(rng.integers(0, 3, 700))
    teacher = reader(3)
    whole = measure_teacher(teacher, (images, labels))
    parts = measure_teacher(teacher, zip(images.split(37), labels.split(37)))
    assert dataclasses.replace(parts, entropy=whole.entropy) == whole
    assert parts.entropy == pytest.approx(whole.entropy)


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        measure_teacher(reader(3), [])


def test_permuted_class_list_is_caught_and_the_mapping_printed():
    order = [2, 0, 1]
    labels = torch.arange(3).repeat(20)
    images = answers([[9 * (output == order[label]) for output in range(3)] for label in labels.tolist()])
    report = measure_teacher(reader(3, ("x", "y", "z")), (images, labels))
    assert report.top1 == 0 and report.best_assignment_top1 == 1 and report.mapping == (2, 0, 1)
    with pytest.raises(UserError, match=r"class order is wrong: .*class 0 is output 2, named 'z'"):
        verdict(report, early=True)


def report(top1, chance=0.1, best=None):
    identity = tuple(range(round(1 / chance)))
    return TeacherReport(top1, chance, top1 if best is None else best, identity, 1.0, 1000)


def test_weak_teachers():
    assert verdict(report(0.51)) == []
    with pytest.raises(UserError, match=r"at least 50\.0% is needed"):
        verdict(report(0.49))
    assert "declared early" in verdict(report(0.2), early=True)[0]
    # Two classes: five times chance is out of reach, so the midpoint of chance and 1 holds.
    with pytest.raises(UserError, match=r"at least 75\.0%"):
        verdict(report(0.7, chance=0.5))
    assert verdict(report(0.76, chance=0.5)) == []


def test_stated_accuracy_and_doubtful_order():
    assert verdict(report(0.8), stated_top1=0.815) == []
    assert "81.5% is stated" in verdict(report(0.79), stated_top1=0.815)[0]
    assert "doubtful" in verdict(report(0.8, best=0.82))[0]
