"""A checkpoint comes back bit for bit through paths and URIs; pickles are refused by content, and misfits are named."""

import dataclasses
import json
import pickle

import pytest
import safetensors.torch
import torch

from raydd.errors import UserError
from raydd.models.checkpoint import (
    ModelInfo,
    count_outputs,
    has_checkpoint,
    load_checkpoint,
    model_from_state,
    read_info,
    read_weights,
    save_checkpoint,
    weights_hash,
)
from raydd.models.registry import build_model

INFO = ModelInfo(
    arch="convnet2",
    image_size=8,
    outputs=3,
    classes=("a", "b", "c"),
    norm="batch",
    width=4,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    epoch=7,
    top1=0.5,
    recipe={"lr": 0.1},
)


def small(seed=0):
    return build_model("convnet2", num_classes=3, image_size=8, width=4, seed=seed)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_round_trip(where, tmp_path):
    directory = str(tmp_path / "new" / "dir") if where == "disk" else "memory://checkpoints/round-trip"
    model = small().to(memory_format=torch.channels_last)
    assert not has_checkpoint(directory, "teacher")
    saved = save_checkpoint(directory, "teacher", model, INFO)
    loaded, info = load_checkpoint(directory, "teacher")
    assert info == saved == dataclasses.replace(INFO, weights=weights_hash(model.state_dict()))
    assert has_checkpoint(directory, "teacher") and not loaded.training
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())


def test_halves_of_two_checkpoints_are_noticed(tmp_path):
    save_checkpoint(str(tmp_path), "a", small(0), INFO)
    save_checkpoint(str(tmp_path), "b", small(1), INFO)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not describe"):
        load_checkpoint(str(tmp_path), "a")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(str(tmp_path), "teacher")


class Bomb:
    def __reduce__(self):
        return (open, ("/nonexistent/bomb", "w"))


@pytest.mark.parametrize("content", ["torch", "pickle", "text"])
def test_a_pickle_named_safetensors_is_refused_by_content(content, tmp_path):
    path = tmp_path / "w.safetensors"
    if content == "torch":
        torch.save(small().state_dict(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb()) if content == "pickle" else b"<html>not found</html>")
    looks = "something else" if content == "text" else "a pickle"
    with pytest.raises(UserError, match=f"not a safetensors file .it looks like {looks}"):
        read_weights(str(path))


@pytest.mark.parametrize("content", [Bomb(), {"weights": Bomb()}, {"epoch": 3}, [1, 2]])
def test_torch_files_never_run_code_and_hold_tensors_only(content, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="safetensors") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_torch_files_in_the_usual_wrappings(tmp_path):
    state = small().state_dict()
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    for number, content in enumerate((state, wrapped)):
        torch.save(content, tmp_path / f"{number}.pth")
        assert weights_hash(read_weights(str(tmp_path / f"{number}.pth"))) == weights_hash(state)


def test_truncated_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(small().state_dict())[:-100])
    with pytest.raises(UserError, match="damaged"):
        read_weights(str(path))


def test_misfits_are_named():
    state = small().state_dict()
    cut = {name: tensor for name, tensor in state.items() if name != "classifier.bias"}
    for weights, words in (
        (cut, "classifier.bias is missing"),
        (state | {"extra": torch.zeros(1)}, "extra is unknown"),
        (state | {"classifier.bias": torch.zeros(5)}, r"classifier.bias is \[5\], expected \[3\]"),
    ):
        with pytest.raises(UserError, match=words):
            model_from_state(weights, INFO, "file")


def test_batch_counters_are_optional():
    model = small()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    assert weights_hash(state) == weights_hash(model.state_dict())
    model_from_state(state, INFO, "file")


def test_hash_sees_every_bit_and_name():
    state = small().state_dict()
    changed = dict(state) | {"classifier.bias": torch.nextafter(state["classifier.bias"], torch.tensor(9.0))}
    renamed = {("x" if name == "classifier.bias" else name): tensor for name, tensor in state.items()}
    assert len({weights_hash(s) for s in (state, changed, renamed)}) == 3


def test_outputs_are_read_off_the_last_layer():
    assert count_outputs(small().state_dict(), "convnet2", 8, "file") == 3
    with pytest.raises(UserError, match=r"no fc\.weight"):
        count_outputs(small().state_dict(), "resnet18", 32, "file")


@pytest.mark.parametrize("content", [b"not json", b"[1]", json.dumps({"arch": "x"}).encode()])
def test_foreign_json(content, tmp_path):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UserError, match="does not describe a raydd model"):
        read_info(str(tmp_path / "t.json"))
