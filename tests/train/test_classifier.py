"""The loop against a hand-written SGD step, its schedules against closed forms, and resuming bit for bit."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydd.models.normalization import IMAGENET
from raydd.models.registry import build_model
from raydd.train.classifier import ClassifierTraining, Optimization, lr_factor, uses_bf16

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (22, 3, 8, 8), dtype=np.uint8))
LABELS = torch.from_numpy(RNG.integers(0, 3, 22))


def training(**options):
    plan = Optimization(**({"epochs": 3, "batch": 8, "lr": 0.05, "augment": "pad_crop"} | options))
    arch = options.get("arch", "convnet2")
    model = build_model(arch, num_classes=3, image_size=8, width=8)
    return ClassifierTraining(model, plan, IMAGENET, "cpu", IMAGES, LABELS)


def test_one_step_is_sgd_on_the_mean_loss():
    run = training(
        epochs=1, batch=22, augment="none", flip=False, precision="fp32", schedule="constant", weight_decay=0.1
    )
    model = build_model("convnet2", num_classes=3, image_size=8, width=8)
    loss = F.cross_entropy(model(IMAGENET.apply(IMAGES)), LABELS)
    loss.backward()
    facts = list(run.epochs())
    assert len(facts) == 1 and facts[0]["epoch"] == 1 and facts[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for old, new in zip(model.parameters(), run.model.parameters()):
        assert torch.allclose(new, old - 0.05 * (old.grad + 0.1 * old), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_training_ends_with_the_same_bits(precision):
    whole = training(precision=precision)
    list(whole.epochs())
    half = training(precision=precision)
    next(half.epochs())
    rest = training(precision=precision)
    rest.restore(half.state(), half.epoch)
    list(rest.epochs())
    expected, got = whole.state(), rest.state()
    assert expected.keys() == got.keys() and any(name.startswith("momentum.") for name in got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_global_generator_is_left_alone_and_not_used():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = training(epochs=1)
        list(run.epochs())
        assert torch.equal(torch.get_rng_state(), before)
        states.append(run.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_seed_is_another_training():
    first, second = training(epochs=1, seed=0), training(epochs=1, seed=1)
    list(first.epochs()), list(second.epochs())
    assert not torch.equal(first.state()["model.classifier.weight"], second.state()["model.classifier.weight"])


def test_cosine_climbs_and_falls_to_zero():
    steps = 1000
    assert lr_factor("cosine", 0, steps) == pytest.approx(1 / 50)
    assert lr_factor("cosine", 24, steps) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.024)))
    assert lr_factor("cosine", 500, steps) == pytest.approx(0.5)
    assert lr_factor("cosine", 999, steps) == pytest.approx(0, abs=1e-5)
    assert {lr_factor("constant", step, steps) for step in (0, 500, 999)} == {1.0}


def test_precision_is_as_told():
    cpu = torch.device("cpu")
    assert uses_bf16("bf16", cpu) and not uses_bf16("fp32", cpu)
    assert uses_bf16("auto", cpu) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
