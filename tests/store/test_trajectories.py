"""Trajectories: exact starts, displacements with float16's error, and one line for a file that is not one of them."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.normalization import IMAGENET
from raydd.store import filesystem as files
from raydd.store import trajectories
from raydd.store.trajectories import ExpertFacts, discard, has_expert, open_experts, write_expert, write_index

FACTS = ExpertFacts(
    arch="convnet2",
    norm="instance",
    width=8,
    num_classes=2,
    image_size=8,
    classes=("ant", "bee"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    epochs=3,
    seed=0,
    names=("weight", "bias"),
    shapes=((4, 3, 2, 2), (4,)),
    measured_on="val",
    config_hash="abc",
)
ACCURACY = (0.5, 0.625, 0.75, 1.0)


def snapshots(index: int = 0) -> torch.Tensor:
    steps = 0.01 * torch.randn(4, 52, generator=torch_rng("steps", index))
    steps[0] = (100 * steps[0]).half().float()
    return steps.cumsum(0)


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path) -> str:
    return str(tmp_path / "experts") if request.param == "local" else f"memory://{tmp_path}/experts"


def write(uri: str, *indices: int, facts: ExpertFacts = FACTS) -> None:
    for index in indices:
        write_expert(uri, index, snapshots(index), facts, [value - 0.01 * index for value in ACCURACY])


def path(uri: str, index: int) -> str:
    return files.join(uri, f"expert-{index:05d}.safetensors")


def test_what_was_written_comes_back(uri):
    write(uri, 0, 1)
    assert write_index(uri, FACTS) == open_experts(uri)
    experts = open_experts(uri)
    assert (experts.count, experts.parameters) == (2, 52)
    assert {f.name: getattr(experts, f.name) for f in dataclasses.fields(FACTS)} == dataclasses.asdict(FACTS)
    assert experts.accuracy == pytest.approx([value - 0.005 for value in ACCURACY])
    trajectory, wanted = experts.load(1), snapshots(1)
    assert trajectory.epochs == 3 and trajectory.accuracy == tuple(value - 0.01 for value in ACCURACY)
    assert torch.equal(trajectory.at(0), wanted[0])
    for epoch in range(4):
        assert trajectory.at(epoch).dtype == torch.float32
        torch.testing.assert_close(trajectory.at(epoch), wanted[epoch], rtol=0, atol=2.0**-11 * 0.1)
    trajectory.at(0).zero_()
    assert torch.equal(trajectory.at(0), wanted[0])
    for epoch in (-1, 4):
        with pytest.raises(IndexError, match=f"snapshot {epoch} of 0 .. 3"):
            trajectory.at(epoch)


def test_float16_keeps_the_displacements_of_a_trained_expert(tmp_path):
    """Within .1 %, also between snapshots; parameters themselves in float16 would not."""
    from raydd.train.experts import ExpertRecipe, expert_net, train_expert

    recipe = ExpertRecipe("convnet2", 8, 2, batch=32, width=8)
    labels = torch.arange(256) % 2
    images = torch.randint(0, 200, (256, 3, 8, 8), generator=torch_rng("images"))
    images[:, 0] += 50 * labels[:, None, None]
    exact = train_expert(images.to(torch.uint8), labels, recipe, 0, normalization=IMAGENET)
    net = expert_net(recipe)
    facts = dataclasses.replace(FACTS, names=tuple(net.names), shapes=tuple(net.shapes))
    write_expert(str(tmp_path), 0, exact, facts, ACCURACY)
    read = write_index(str(tmp_path), facts).load(0)
    for start, end in ((0, 1), (0, 2), (0, 3), (1, 3)):
        wanted = exact[end] - exact[start]

        def error(displacement, wanted=wanted) -> float:
            return ((displacement - wanted).norm() / wanted.norm()).item()

        assert 0 < error(read.at(end) - read.at(start)) < 1e-3
        assert error(exact[end].half().float() - exact[start].half().float()) > 2e-3


def test_the_index_counts_what_is_there_without_a_gap(uri):
    assert write_index(uri, FACTS).count == 0
    write(uri, 0, 1, 3)
    write(uri, 2, facts=dataclasses.replace(FACTS, config_hash="other"))
    assert write_index(uri, FACTS).count == 2
    two = open_experts(uri).hash
    write(uri, 2)
    assert write_index(uri, FACTS).count == 4 == open_experts(uri).count
    assert open_experts(uri).hash != two


def test_an_unchanged_index_is_not_written_again(tmp_path):
    write(str(tmp_path), 0)
    write_index(str(tmp_path), FACTS)
    before = (tmp_path / "experts.json").stat().st_mtime_ns
    write_index(str(tmp_path), FACTS)
    assert (tmp_path / "experts.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("head_bytes", [1 << 16, 64])
def test_an_expert_is_there_when_its_file_is_whole_and_its_configuration_fits(uri, monkeypatch, head_bytes):
    monkeypatch.setattr(trajectories, "HEAD_BYTES", head_bytes)
    assert not has_expert(uri, 0, "abc")
    write(uri, 0)
    assert has_expert(uri, 0, "abc") and not has_expert(uri, 0, "abd") and not has_expert(uri, 1, "abc")
    data = files.read_bytes(path(uri, 0))
    for part in (data[:-1], data[:200], data[:4], b"", safetensors.torch.save({"start": torch.zeros(3)})):
        files.write_atomic(path(uri, 0), part)
        assert not has_expert(uri, 0, "abc")


def test_an_outage_is_not_taken_for_an_absent_expert(monkeypatch):
    def unreachable(*_):
        raise UserError("cannot reach it")

    monkeypatch.setattr(files, "read_bytes", unreachable)
    with pytest.raises(UserError, match="cannot reach it"):
        has_expert("s3://bucket/experts", 0, "abc")
    with pytest.raises(UserError, match=r"^cannot reach it"):
        open_experts("s3://bucket/experts")


def test_no_experts(tmp_path):
    remedy = f"train them with 'raydd train-experts --data SRC --out {tmp_path}"
    with pytest.raises(UserError, match=f"no experts in {tmp_path} .*{remedy}"):
        open_experts(str(tmp_path))
    with pytest.raises(UserError, match=r"no experts in .*/nowhere"):
        open_experts(str(tmp_path / "nowhere"))
    write_index(str(tmp_path), FACTS)
    with pytest.raises(UserError, match=f"no expert in {tmp_path} is finished: {remedy}"):
        open_experts(str(tmp_path))
    for wrong in ("{", "[]", json.dumps({"arch": "convnet2", "shapes": []})):
        (tmp_path / "experts.json").write_text(wrong)
        with pytest.raises(UserError, match="does not describe experts"):
            open_experts(str(tmp_path))


def test_files_that_are_no_expert_of_the_index(uri):
    write(uri, 0, 1)
    experts = write_index(uri, FACTS)
    data = files.read_bytes(path(uri, 0))
    damaged = (data[:-1], data[:100], b"", b"PK not this", safetensors.torch.save({"start": torch.zeros(3)}))
    for part in damaged:
        files.write_atomic(path(uri, 0), part)
        with pytest.raises(UserError, match=r"expert-00000.safetensors is no expert, or a damaged one \(.+\): remove"):
            experts.load(0)
    write(uri, 0, facts=dataclasses.replace(FACTS, config_hash="other"))
    with pytest.raises(UserError, match=r"is of other experts than experts.json beside it: remove it and run"):
        experts.load(0)
    with pytest.raises(UserError, match=r"expert-00002.safetensors is missing \(.* has experts 0 .. 1\): run"):
        experts.load(2)


CHECKS = [
    ({"arch": "convnet3"}, "are of convnet2, not convnet3: .*--arch convnet3"),
    ({"size": 16}, "work at 8 px, not 16 px: .*--size 16"),
    ({"classes": ("ant", "cat")}, "call class 1 'bee', not 'cat': .*--data and --classes"),
    ({"classes": ("bee", "ant")}, "call class 0 'ant', not 'bee'"),
    ({"classes": ("ant", "bee", "cat")}, "know 2 classes, not 3"),
    ({"mean": [0.5, 0.4, 0.2]}, r"were normalized by mean \[0.5, 0.4, 0.3\], not \[0.5, 0.4, 0.2\]: .*--teacher"),
    ({"std": [0.1, 0.2, 0.2]}, "were normalized by std .*--teacher"),
    ({"epochs": 4}, "have 3 epochs, but epoch 4 is to be read: .*--epochs 4"),
]


@pytest.mark.parametrize(("asked", "message"), CHECKS, ids=[message[:24] for _, message in CHECKS])
def test_what_differs_is_named_with_the_remedy(tmp_path, asked, message):
    write(str(tmp_path), 0)
    experts = write_index(str(tmp_path), FACTS)
    fits = {"arch": "convnet2", "size": 8, "classes": ["ant", "bee"], "mean": [0.5, 0.4, 0.3], "std": [0.2] * 3}
    experts.check(**fits, epochs=3)
    experts.check()
    with pytest.raises(UserError, match=f"the experts in {tmp_path} {message}") as refusal:
        experts.check(**(fits | asked))
    assert "\n" not in str(refusal.value)


def test_wrong_snapshots_are_not_written(tmp_path):
    good = snapshots()
    unrounded, endless = good.clone(), good.clone()
    unrounded[0] += 1e-5
    endless[2, 3] = 1e9
    cases = ((good[:3], "expected"), (good[:, :-1], "expected"), (endless, "finite"), (unrounded, "rounded"))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            write_expert(str(tmp_path), 0, wrong, FACTS, ACCURACY)
    assert not list(tmp_path.iterdir())


def test_discard_leaves_what_is_not_an_expert(uri):
    write(uri, 0, 7)
    write_index(uri, FACTS)
    files.write_atomic(files.join(uri, "run.json"), b"{}")
    discard(uri)
    assert files.list_files(uri) == ["run.json"]
