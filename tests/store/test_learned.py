"""What was learned comes back in the file's dtypes, whole or the curves alone; a damaged file is refused by name."""

import dataclasses

import pytest
import safetensors.torch
import torch

from raydd.errors import UserError
from raydd.store import filesystem, learned
from raydd.store.learned import CURVES, DTYPES, Learned, learned_labels, read_curves, read_learned, write_learned
from raydd.store.run import Run

FACTS = {"class_name": "n01440764 t\u00ebnch", "method": "ld3m", "numbers_per_image": {"latent": 48, "condition": 5}}


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}")


def example(n: int = 3, k: int = 7, m: int = 2) -> Learned:
    rng = torch.Generator().manual_seed(n)
    pictures = torch.randint(0, 256, (2, n, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return Learned(
        latents=torch.randn(n, 3, 4, 4, generator=rng),
        conditions=torch.randn(5, n, generator=rng).T,
        start=pictures[0],
        initial=pictures[1],
        iteration=torch.arange(k),
        loss=torch.rand(k, generator=rng, dtype=torch.float64),
        heldout_iteration=torch.arange(m) * 3,
        heldout=torch.rand(m, generator=rng),
        facts=FACTS,
    )


def same(found, expected, names) -> bool:
    values = ((getattr(found, name), getattr(expected, name).to(DTYPES[name])) for name in names)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in values) and found.facts == expected.facts


@pytest.mark.parametrize(("k", "m"), [(7, 2), (1, 0), (0, 0)])
def test_what_was_written_comes_back(run, k, m):
    written = example(k=k, m=m)
    write_learned(run, 4, written)
    assert same(read_learned(run, 4), written, DTYPES)
    curves = read_curves(run, 4)
    assert same(curves, written, CURVES) and not isinstance(curves, Learned)
    write_learned(run, 4, example(n=2))
    assert same(read_learned(run, 4), example(n=2), DTYPES)


def test_what_may_be_absent(run):
    bare = dataclasses.replace(example(), conditions=None, start=None, initial=None)
    write_learned(run, 0, bare)
    found = read_learned(run, 0)
    assert (found.conditions, found.start, found.initial) == (None, None, None)
    assert same(found, bare, (*CURVES, "latents")) and same(read_curves(run, 0), bare, CURVES)


def test_classes_are_listed_and_absent_ones_are_none(run):
    assert learned_labels(run) == [] and read_learned(run, 0) is None and read_curves(run, 0) is None
    for label in (10, 2):
        write_learned(run, label, example())
    filesystem.write_atomic(run.path("learned", "notes.txt"), b"x")
    assert learned_labels(run) == [2, 10]


def test_curves_are_read_without_the_pictures(run, monkeypatch):
    big = dataclasses.replace(example(), start=torch.zeros(3, 3, 512, 512, dtype=torch.uint8))
    write_learned(run, 0, big)
    read, sizes = filesystem.read_bytes, []

    def counted(*args):
        sizes.append(len(data := read(*args)))
        return data

    monkeypatch.setattr(filesystem, "read_bytes", counted)
    assert same(read_curves(run, 0), big, CURVES) and sum(sizes) < 3000


def test_every_cut_is_damage(tmp_path):
    run = Run(str(tmp_path / "run"))
    write_learned(run, 0, example())
    uri = learned.path(run, 0)
    data = filesystem.read_bytes(uri)
    curves_end = data.index(example().heldout.numpy().tobytes()) + 4 * 18
    for cut in [0, 5, 8, 60, curves_end - 1, len(data) - 1]:
        filesystem.write_atomic(uri, data[:cut])
        with pytest.raises(UserError, match=r"label=0\.safetensors is damaged .* remove it"):
            read_learned(run, 0)
        if cut < curves_end:
            with pytest.raises(UserError, match=r"label=0\.safetensors is damaged"):
                read_curves(run, 0)
    filesystem.write_atomic(uri, b"\xff" * 8 + data[8:])
    with pytest.raises(UserError, match="cut off"):
        read_curves(run, 0)


FOREIGN = {
    "absent": {"loss": None},
    "dtype": {"loss": torch.zeros(7, dtype=torch.float64)},
    "lengths": {"loss": torch.zeros(6)},
    "axes": {"loss": torch.zeros(7, 1), "iteration": torch.zeros(7, 1, dtype=torch.int32)},
}


@pytest.mark.parametrize("change", FOREIGN)
def test_a_file_of_another_kind_is_refused(tmp_path, change):
    run = Run(str(tmp_path / "run"))
    write_learned(run, 0, example())
    uri = learned.path(run, 0)
    tensors = safetensors.torch.load(filesystem.read_bytes(uri)) | FOREIGN[change]
    tensors = {name: value for name, value in tensors.items() if value is not None}
    filesystem.write_atomic(uri, safetensors.torch.save(tensors, {"raydd": "{}"}))
    for read in (read_learned, read_curves):
        with pytest.raises(UserError, match="loss"):
            read(run, 0)


def test_a_file_without_facts_is_refused(tmp_path):
    run = Run(str(tmp_path / "run"))
    write_learned(run, 0, example())
    uri = learned.path(run, 0)
    filesystem.write_atomic(uri, safetensors.torch.save(safetensors.torch.load(filesystem.read_bytes(uri))))
    for read in (read_learned, read_curves):
        with pytest.raises(UserError, match="no file of raydd's"):
            read(run, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": torch.zeros(3, 3, 8, 8)},
        {"initial": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)},
        {"latents": torch.zeros(2, 3, 4, 4)},
        {"heldout": torch.zeros(5)},
        {"facts": {"loss": float("nan")}},
    ],
    ids=["float pictures", "channels last", "rows", "curve", "facts"],
)
def test_what_does_not_belong_together_is_not_written(tmp_path, wrong):
    run = Run(str(tmp_path / "run"))
    with pytest.raises(ValueError):
        write_learned(run, 0, dataclasses.replace(example(), **wrong))
    assert learned_labels(run) == []
