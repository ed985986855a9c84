"""A student trained by two processes equals the one of one process; room and errors are checked."""

import dataclasses
import json
from pathlib import Path

import pytest

from raydd.data.source import open_source, open_validation
from raydd.data.tensors import load_images
from raydd.errors import UserError
from raydd.evaluate.labels import make_labels
from raydd.evaluate.protocols import resolve
from raydd.models.normalization import IMAGENET
from raydd.runtime.ray_ddp import train_together
from raydd.runtime.work import Resources
from raydd.train.sets import TrainSet, ValSet
from raydd.train.student import StudentResult, train_student

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


@dataclasses.dataclass(frozen=True)
class DigitStudent:
    """A ConvNet-3 on a hundred digits, without batch statistics."""

    folder: str
    behavior: str = "ok"

    name = "digits"

    @property
    def file(self) -> Path:
        return Path(self.folder, "result.json")

    def is_done(self) -> bool:
        return self.file.exists()

    def train(self, device: str, rank: int = 0, world: int = 1) -> StudentResult:
        with Path(self.folder, f"begun-{rank}").open("a") as begun:
            begun.write("x")
        if self.behavior == "user" and rank == 1:
            raise UserError("rank 1 is unhappy: cheer it up")
        source, val = open_source("digits"), load_images(open_validation("digits"), 16)
        train = load_images(source, 16, keys=source.index()["key"].to_pylist()[::14])
        train = TrainSet(train.images, train.labels, list(train.keys))
        protocol = resolve("noaug:quick", num_classes=10, ipc=10, image_size=16, arch="convnet3")
        assert protocol.norm == "instance"
        return train_student(
            train,
            ValSet(val.images, val.labels, list(val.keys)),
            dataclasses.replace(protocol, epochs=8),
            "convnet3",
            0,
            num_classes=10,
            normalization=IMAGENET,
            labels=make_labels("hard", train, num_classes=10, teacher=None, normalization=IMAGENET, device=device),
            device=device,
            rank=rank,
            world=world,
        )

    def commit(self, result: StudentResult) -> None:
        self.file.write_text(json.dumps(dataclasses.asdict(result)))


@pytest.fixture(autouse=True)
def by_value(shared_ray):
    import sys

    shared_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_two_processes_give_the_result_of_one(tmp_path, capfd):
    unit = DigitStudent(str(tmp_path))
    alone = unit.train("cpu")
    train_together(unit, 2, Resources(), str(tmp_path / "state"))
    together = json.loads(unit.file.read_text())
    assert (tmp_path / "begun-1").exists()
    assert together["images_seen"] == alone.images_seen
    assert together["steps"] == alone.steps
    assert alone.last > 0.5
    assert together["last"] == pytest.approx(alone.last, abs=1e-3)
    assert together["per_class"] == pytest.approx(alone.per_class, abs=1e-3)
    assert capfd.readouterr().err == ""


def test_a_users_error_in_one_rank_is_not_tried_again(tmp_path):
    with pytest.raises(UserError, match="student 'digits' failed: rank 1 is unhappy: cheer it up;"):
        train_together(DigitStudent(str(tmp_path), "user"), 2, Resources(), str(tmp_path / "state"))
    assert (tmp_path / "begun-1").read_text() == "x"


def test_more_workers_than_there_is_room_for_are_refused(tmp_path):
    with pytest.raises(UserError, match="--ddp 64: the cluster has room for 4 workers"):
        train_together(DigitStudent(str(tmp_path)), 64, Resources(), str(tmp_path / "state"))


def test_a_prior_is_trained_by_two_processes_as_by_one(tmp_path):
    """The same draws, shared out: equal weights up to the order in which gradients are summed."""
    import safetensors.torch
    import torch

    from raydd import cli

    recipe = "--preset tiny --steps 4 --batch 8 --precision fp32"
    for name, how in (("one", "--executor local"), ("two", "--ddp 2")):
        cli.main(f"train-prior --data digits --out {tmp_path / name} {recipe} {how}".split())
    one, two = (
        safetensors.torch.load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=2e-4) for key in one)
    assert (tmp_path / "two" / "model_index.json").exists()
