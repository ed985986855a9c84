"""Weights, priors and arrays that would run code where they are unpickled."""

import io
import json
import pickle
import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch
from commandline import done, refused
from hostile import LOCAL, SMALL, prior_of, sample

from raydd.errors import UserError
from raydd.store import distilled, plain
from raydd.store.run import Run


def test_the_canary_sings(tmp_path):
    """The planted pickles do run code where they are unpickled."""
    for i, data in enumerate(hostile.pickles(tmp_path / "x").values()):
        canary = tmp_path / f"canary{i}"
        data = hostile.pickles(canary)[list(hostile.pickles(canary))[i]]
        load = (
            lambda data: torch.load(io.BytesIO(data), weights_only=False),
            lambda data: torch.load(io.BytesIO(data), weights_only=False),
            pickle.loads,
            lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        )[i]
        load(data)
        assert canary.exists()


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle", "npy"])
@pytest.mark.parametrize("suffix", ["pth", "ckpt", "safetensors", "npy"])
def test_weights_are_never_unpickled(kind, suffix, source, canary, tmp_path):
    path = tmp_path / f"teacher.{suffix}"
    path.write_bytes(hostile.pickles(canary)[kind])
    words = ("--data", source, "--out", tmp_path / "run", "--teacher", path, "--teacher-arch", "convnet3")
    line = refused("distill", "infoutil", *words, *SMALL)
    assert str(path) in line and not (tmp_path / "run").exists()


def test_a_teacher_directory_of_pickles(source, canary, tmp_path, digits_teacher):
    shutil.copytree(digits_teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "teacher.safetensors").write_bytes(hostile.pickles(canary)["torch"])
    words = ("--data", "digits", "--out", tmp_path / "run", "--teacher", tmp_path / "teacher", "--scores", "loss")
    assert "is not a safetensors file (it looks like a pickle)" in refused("score", *words, *LOCAL)


@pytest.mark.parametrize("kind", ["torch", "pickle", "npy"])
def test_pickles_in_a_source_are_no_images(kind, canary, tmp_path):
    data = hostile.pickles(canary)[kind]
    tree = hostile.write_tree(tmp_path / "tree")
    for name in ("x.png", "x.jpg", "x.npy", "x.pth", "x.pkl"):
        (tree / "ant" / name).write_bytes(data)
    done("distill", "random", "--data", tree, "--out", tmp_path / "run", "--ipc", 3, "--size", 8, *LOCAL)
    assert distilled.read_manifest(Run(str(tmp_path / "run")))["counts"] == {"ant": 3, "bee": 3}
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "x.npy").write_bytes(data)
    assert "is no source" in refused(
        "distill", "random", "--data", tmp_path / "arrays", "--out", tmp_path / "b", *SMALL
    )


def test_priors_are_never_unpickled(source, canary, tmp_path):
    prior, data = prior_of(tmp_path), hostile.pickles(canary)["torch"]
    weights = prior / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (prior / "unet" / "diffusion_pytorch_model.bin").write_bytes(data)
    assert "pickled weights are never read" in sample(prior, source, tmp_path)
    weights.write_bytes(data)
    assert str(prior) in sample(prior, source, tmp_path)
    # An index that names a pickle as the file of every weight.
    weights.unlink()
    names = {"conv_in.weight": "diffusion_pytorch_model.bin"}
    index = prior / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (prior / "unet" / "x.safetensors").write_bytes(b"")
    assert str(prior) in sample(prior, source, tmp_path)


def test_priors_choose_no_code(source, canary, tmp_path):
    prior = prior_of(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    index = json.loads((prior / "model_index.json").read_text())
    changes = (
        ("model_index.json", index | {"unet": ["evil", "UNet"]}, "raydd knows"),
        ("model_index.json", index | {"vae": ["..evil", "AutoencoderEvil"]}, "raydd knows"),
        ("scheduler/scheduler_config.json", {"_class_name": "evil.Scheduler"}, "evil.Scheduler"),
    )
    for name, content, said in changes:
        before = (prior / name).read_text()
        (prior / name).write_text(json.dumps(content))
        assert said in sample(prior, source, tmp_path)
        (prior / name).write_text(before)


@pytest.mark.parametrize("kind", hostile.safetensors_files())
def test_safetensors_that_lie(kind, source, tmp_path, digits_teacher):
    data = hostile.safetensors_files()[kind]
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(data)
    words = ("--data", source, "--out", tmp_path / "run")
    refused("distill", "infoutil", *words, "--teacher", path, "--teacher-arch", "convnet3", *SMALL)
    prior = prior_of(tmp_path)
    (prior / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(data)
    sample(prior, source, tmp_path)
    # A half-done training of a teacher.
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "resume-teacher.safetensors").write_bytes(data)
    train = ("--arch", "convnet3", "--width", 4, "--size", 8, "--epochs", 1, "--early-epochs", 0, "--val", source)
    line = refused("train-teacher", "--data", source, "--out", tmp_path / "half", *train, *LOCAL)
    assert "resume-teacher.safetensors" in line or "same images" in line or "overlap" in line
    with pytest.raises(UserError):
        plain.load_tensors(data, "x")


def test_a_safetensors_teacher_is_still_read(digits_teacher):
    """The guards let good files pass."""
    data = (Path(digits_teacher) / "teacher.safetensors").read_bytes()
    wanted = safetensors.torch.load(data)
    assert plain.load_tensors(data, "x").keys() == wanted.keys()
