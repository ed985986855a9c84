"""A folder of real digits of three classes, which the digits' teacher knows by name; options of runs made from it."""

import shutil
from pathlib import Path

import pytest
from pipelines.small_ld3m import SIZE, write_experts
from priors import write_tiny_prior

from raydd.data.source import open_source
from raydd.pipelines.distill import distill, reference
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Resources

CLASSES = ("0", "1", "2")


def digit_bytes(split: str, label: int, count: int) -> list[bytes]:
    """PNG files of the first digits of a class."""
    source = open_source("digits", split)
    table = source.index().to_pydict()
    keys = [key for key, own in zip(table["key"], table["label"]) if own == label][:count]
    return [record.data for record in source.read(keys)]


def write_tree(root: Path, train: int = 16, val: int = 8) -> Path:
    """An ImageFolder `root` with `train` and `val` parts."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, data in enumerate(digit_bytes(split, label, count)):
                (folder / f"{i:02d}.png").write_bytes(data)
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def digits_tree(tmp_path_factory) -> Path:
    """The same folder, for tests that only read it."""
    return write_tree(tmp_path_factory.mktemp("digits") / "tree")


@pytest.fixture(scope="session")
def small_prior(tmp_path_factory) -> str:
    """A pixel-space prior of the three classes at 8 px, with random weights."""
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), CLASSES, SIZE)


@pytest.fixture(scope="session")
def small_experts(tmp_path_factory, digits_tree) -> str:
    """Expert trajectories of the three classes at 8 px."""
    return write_experts(digits_tree, tmp_path_factory.mktemp("experts") / "experts")


@pytest.fixture
def ask(tree, tmp_path, digits_teacher):
    """Options of a distillation of the tree into a directory of that name."""

    def options(name: str, **changes) -> DistillOptions:
        plain = {"data": str(tree), "teacher": digits_teacher, "ipc": 1, "batch": 16}
        return DistillOptions(**(plain | {"out": str(tmp_path / name)} | changes))

    return options


@pytest.fixture
def teacher(tmp_path, digits_teacher) -> str:
    """A copy of the digits' teacher that a test may move."""
    return shutil.copytree(digits_teacher, str(tmp_path / "teacher"))


@pytest.fixture
def make(tree, tmp_path, teacher):
    """Makes a run of the tree by a method, with its own copy of the teacher; its directory."""

    def run_of(method, name: str = "run", **changes) -> str:
        plain = {"data": str(tree), "out": str(tmp_path / name), "teacher": teacher, "ipc": 2, "size": 16}
        options = DistillOptions(**(plain | changes))
        _ = reference(options) if method == "full" else distill(options, method, Resources(executor="local"))
        return options.out

    return run_of


@pytest.fixture
def judge(tree):
    """Options of an evaluation of some runs on the tree's validation part."""

    def options(*runs: str, **changes) -> EvaluateOptions:
        plain = {"val": str(tree), "students": "convnet3", "protocol": "hard@2", "seeds": 1, "flip": False}
        return EvaluateOptions(run=runs, **(plain | changes))

    return options
