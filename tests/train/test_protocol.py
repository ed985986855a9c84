"""A protocol's hash covers every field; steps, checks and rates follow from its fields."""

import dataclasses

import pytest

from raydd.train.protocol import Augmentation, Protocol
from raydd.train.schedule import Schedule


def protocol(**changes):
    base = {
        "name": "p",
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 5e-4,
        "schedule": Schedule("step"),
        "epochs": 30,
        "batch": 64,
        "augmentation": Augmentation(),
        "loss": "ce",
        "labels": "hard",
        "image_size": 32,
        "test_resize": 32,
    }
    return Protocol(**(base | changes))


CHANGES = {
    "name": "q",
    "optimizer": "adamw",
    "lr": 0.02,
    "weight_decay": 1e-4,
    "schedule": Schedule("step", gamma=0.1),
    "epochs": 31,
    "batch": 65,
    "augmentation": Augmentation(flip=True),
    "loss": "kl",
    "labels": "soft",
    "image_size": 64,
    "test_resize": 36,
    "arch_lr": (("vgg", 1e-4),),
    "momentum": 0.8,
    "wd_on_matrices_only": True,
    "accumulate": 2,
    "temperature": 20.0,
    "ema": 0.9,
    "norm": "instance",
    "precision": "bf16",
    "checks": (1.0,),
    "double_bn_update": True,
}


def test_every_field_changes_the_hash():
    names = {f.name for f in dataclasses.fields(Protocol)} - {"hash"}
    assert names == CHANGES.keys()
    hashes = {protocol(**{name: value}).hash for name, value in CHANGES.items()}
    assert len(hashes | {protocol().hash}) == len(names) + 1
    assert dataclasses.replace(protocol(), epochs=31).hash == protocol(epochs=31).hash
    assert protocol().hash == protocol().hash


def test_every_augmentation_changes_the_hash():
    changes = {
        "autoaugment": True,
        "tiles": 2,
        "crop_area": (0.5, 1.0),
        "flip": True,
        "jitter": (0.4, 0.4, 0.4),
        "lighting": 0.1,
        "dsa": "one",
        "cutmix": 0.5,
        "cutmix_alpha": 0.5,
    }
    assert changes.keys() == {f.name for f in dataclasses.fields(Augmentation)}
    hashes = {protocol(augmentation=Augmentation(**{k: v})).hash for k, v in changes.items()}
    assert len(hashes) == len(changes)


def test_steps_and_checks():
    assert protocol().steps(64) == 30 and protocol().steps(65) == 60
    assert protocol().check_steps(10) == (2, 4, 6, 8, 10)
    assert protocol().check_steps(2) == (1, 2)
    assert protocol(checks=(250 / 300, 1.0)).check_steps(300) == (250, 300)


def test_rates_by_prefix():
    plan = protocol(arch_lr=(("vgg", 5e-4), ("vit", 1e-4)))
    assert [plan.lr_for(a) for a in ("vgg11_dd", "torchvision/vit_b_16", "convnet3")] == [5e-4, 1e-4, 0.01]


def test_the_last_check_must_be_the_end():
    with pytest.raises(ValueError, match="last check"):
        protocol(checks=(0.5,))
