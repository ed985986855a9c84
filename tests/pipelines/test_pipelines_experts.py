"""Experts of a source: each trained once, whatever the order and the count; resumed; refused to another recipe."""

import json
import shutil

import pytest
import torch
from commandline import contents, done, refused, snapshot

from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.errors import Unfinished, UserError
from raydd.models.checkpoint import read_info
from raydd.models.normalization import IMAGENET
from raydd.pipelines import experts as pipeline
from raydd.pipelines.experts import ExpertOptions, load_group, prepare, train, train_many
from raydd.runtime.work import Context, Resources
from raydd.store import events
from raydd.store.run import Run
from raydd.store.trajectories import open_experts

LOCAL = Resources(executor="local")


def options(tree, tmp_path, **changes) -> ExpertOptions:
    plain = {"arch": "convnet2", "width": 8, "size": 8, "epochs": 2, "batch": 16, "count": 2}
    return ExpertOptions(**({"data": str(tree), "out": str(tmp_path / "experts")} | plain | changes))


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"state"}


def test_train_twice_then_more(tree, tmp_path):
    out = tmp_path / "experts"
    experts = train(options(tree, tmp_path), LOCAL)
    assert experts == open_experts(str(out)) and (experts.count, experts.epochs) == (2, 2)
    assert experts.classes == ("0", "1", "2") and experts.measured_on == "val" and len(experts.accuracy) == 3
    files = {f"expert-{i:05d}.safetensors" for i in range(2)}
    files |= {"experts.json", "run.json", "events.jsonl", "tensorboard"}
    assert names(out) == files
    before = snapshot(out)
    assert train(options(tree, tmp_path), LOCAL) == experts
    assert train(options(tree, tmp_path, count=1), LOCAL) == experts
    assert snapshot(out) == before
    assert train(options(tree, tmp_path, count=3), LOCAL).count == 3
    after = snapshot(out)
    assert all(after[name] == before[name] for name in files if name.startswith("expert-"))
    trained = [event["name"] for event in events.read(Run(str(out))) if event["event"] == "expert_trained"]
    assert trained == ["0", "1", "2"]


def test_an_expert_does_not_depend_on_the_others(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    prepared = prepare(options(tree, tmp_path, out=str(tmp_path / "alone")))
    prepared.units[1].run(Context())
    wanted, alone = contents(tmp_path / "experts"), contents(tmp_path / "alone")
    assert alone["expert-00001.safetensors"] == wanted["expert-00001.safetensors"]
    assert wanted["expert-00000.safetensors"] != wanted["expert-00001.safetensors"]


def test_a_stopped_command_goes_on(tree, tmp_path, monkeypatch):
    out, write = tmp_path / "experts", pipeline.write_expert

    def fail(uri, index, *rest):
        if index == 1:
            raise RuntimeError("lost")
        write(uri, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_expert", fail)
        with pytest.raises(Unfinished, match="lost"):
            train(options(tree, tmp_path, count=3), LOCAL)
    assert open_experts(str(out)).count == 1
    assert any(event["event"] == "unit_failed" and event["name"] == "1" for event in events.read(Run(str(out))))
    before = snapshot(out)
    assert train(options(tree, tmp_path, count=3), LOCAL).count == 3
    after = snapshot(out)
    assert all(after[f"expert-0000{i}.safetensors"] == before[f"expert-0000{i}.safetensors"] for i in (0, 2))


def test_a_damaged_expert_is_trained_again(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    before = contents(tmp_path / "experts")
    file = tmp_path / "experts" / "expert-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    train(options(tree, tmp_path), LOCAL)
    assert contents(tmp_path / "experts")[file.name] == before[file.name]


def test_another_configuration_is_refused_unless_forced(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    before = snapshot(tmp_path / "experts")
    changes = {"epochs": 3, "lr": 0.1, "classes": "0,2", "seed": 1, "arch": "convnet3", "momentum": 0.5, "size": 16}
    for name, value in changes.items():
        with pytest.raises(UserError, match=f"experts stage of another configuration .*{name[:4]}"):
            train(options(tree, tmp_path, **{name: value}), LOCAL)
    assert snapshot(tmp_path / "experts") == before
    again = train(options(tree, tmp_path, epochs=1, count=1, force=True), LOCAL)
    assert (again.epochs, again.count) == (1, 1) and again == open_experts(str(tmp_path / "experts"))
    assert "expert-00001.safetensors" not in names(tmp_path / "experts")


def test_a_run_of_another_kind_is_left_alone(tree, tmp_path):
    run = Run(str(tmp_path / "experts"))
    run.begin("distill", {}, seed=0)
    before = snapshot(tmp_path / "experts")
    with pytest.raises(UserError, match="is a run with a distill stage: give experts an --out of their own"):
        train(options(tree, tmp_path, force=True), LOCAL)
    assert snapshot(tmp_path / "experts") == before


def test_groups_of_classes(tree, tmp_path):
    requests = [options(tree, tmp_path, classes=names, out=str(tmp_path / names)) for names in ("2,0", "1,2")]
    first, second = train_many(requests, LOCAL)
    assert (first.classes, second.classes, first.num_classes) == (("0", "2"), ("1", "2"), 2)
    images, labels = load_group(str(tree), "train", 8, ("0", "2"))
    whole = load_images(open_source(str(tree), "train"), 8)
    for label, position in ((0, 0), (2, 1)):
        assert torch.equal(images[labels == position], whole.images[whole.labels == label])
    assert len(labels) == 32 and len(load_group(str(tree), "val", 8, ("0", "2"), 5)[0]) == 5
    with pytest.raises(UserError, match=r"--classes 1: .*name at least 2"):
        prepare(options(tree, tmp_path, classes="1"))


def test_size_and_normalization_are_those_of_a_distillation(tree, tmp_path, digits_teacher):
    plain = prepare(options(tree, tmp_path)).facts
    assert (plain.mean, plain.std, plain.norm) == (IMAGENET.mean, IMAGENET.std, "instance")
    taught = prepare(options("digits", tmp_path, size=None, arch=None, teacher=digits_teacher)).facts
    info = read_info(f"{digits_teacher}/teacher.json")
    assert (taught.mean, taught.std, taught.image_size, taught.arch) == (info.mean, info.std, 16, "convnet3")
    with pytest.raises(UserError, match="no --size and no --teacher"):
        prepare(options(tree, tmp_path, size=None))
    with pytest.raises(UserError, match="works at 16 px but the images have 32 px"):
        prepare(options("digits", tmp_path, size=32, teacher=digits_teacher))


def test_the_network_follows_the_size(tree, tmp_path):
    archs = [prepare(options(tree, tmp_path, arch=None, size=size)).facts.arch for size in (32, 64, 128, 256)]
    assert archs == ["convnet3", "convnet4", "convnet5", "convnet6"]


def test_without_a_val_part_snapshots_are_measured_on_training_images(tree, tmp_path):
    shutil.rmtree(tree / "val")
    experts = train(options(tree, tmp_path, count=1, epochs=1), LOCAL)
    assert experts.measured_on == "train" and len(experts.accuracy) == 2


def test_the_command(tmp_path):
    out = tmp_path / "experts"
    args = ("train-experts", "--data", "digits", "--out", out, "--size", 8, "--width", 4, "--classes", "0,1")
    line = done(*args, "--count", 2, "--epochs", 2, "--lr", 0.1, "--batch", 64, "--executor", "local")
    assert "2 experts of convnet3, 2 epochs and 442 parameters each" in line and "after 0 .. 2 epochs" in line
    index = json.loads((out / "experts.json").read_text())
    assert " ".join(f"{100 * value:.1f}" for value in index["accuracy"]) in line
    assert index["accuracy"][-1] > index["accuracy"][0]


WRONG = [
    (("--count", 0), "--count 0: must be at least 1"),
    (("--size", 0), "--size 0: must be at least 1"),
    (("--epochs", 0), "--epochs 0: must be at least 1"),
    (("--lr", 0), "--lr 0.0: must be positive"),
    (("--arch", "convnet4"), "convnet4 halves the image 4 times and needs at least 16 px, not 8"),
    (("--arch", "covnet3"), "unknown network 'covnet3': did you mean 'convnet3'"),
    (("--classes", "0,ten"), "unknown class 'ten'"),
    (("--executor", "slurm"), "unknown executor 'slurm'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_wrong_options_change_nothing(tmp_path, given, message):
    base = ("train-experts", "--data", "digits", "--out", tmp_path / "experts", "--size", 8, "--executor", "local")
    assert message in refused(*base, *given)
    assert not (tmp_path / "experts").exists()
