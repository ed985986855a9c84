"""Half-done states: the same tensors, step and facts back; a state of another configuration or a damaged one is refused
and told; nothing is left after deletion."""

import pytest
import torch

from raydd.store import events, filesystem, state
from raydd.store.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(str(tmp_path / "run"))


def refusals(run: Run) -> list[str]:
    return [event["reason"] for event in events.read(run) if event["event"] == "state_refused"]


def save(run: Run, unit: str = "0", step: int = 3, config_hash: str = "a", **tensors) -> None:
    state.save(run, unit, tensors, step=step, config_hash=config_hash, facts={"log": [0.5, 0.25], "note": "x"})


def test_what_was_saved_comes_back(run):
    whole = torch.randn(4, 5)
    # Slices of one buffer, a transposed view, an integer and a low-precision tensor.
    tensors = {"a": whole[:2], "b": whole[2:], "t": whole.T, "i": torch.arange(3), "h": whole.bfloat16()}
    save(run, **tensors)
    found = state.load(run, "0", "a")
    assert (found.step, found.facts) == (3, {"log": [0.5, 0.25], "note": "x"})
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert found.tensors["h"].dtype == torch.bfloat16
    save(run, step=4, a=torch.zeros(1))
    assert state.load(run, "0", "a").step == 4
    assert refusals(run) == []


def test_there_is_nothing_before_the_first_save_and_after_deletion(run):
    assert state.load(run, "0", "a") is None
    state.delete(run, "0")
    save(run, x=torch.ones(2))
    state.delete(run, "0")
    assert state.load(run, "0", "a") is None
    assert filesystem.list_files(run.path("state")) == []


def test_a_state_of_another_configuration_is_refused_and_told(run):
    save(run, x=torch.ones(2))
    assert state.load(run, "0", "b") is None
    assert refusals(run) == ["made by configuration a, not b"]
    assert state.load(run, "0", "a") is not None


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_damaged_state_is_refused_and_told(run, cut):
    save(run, x=torch.ones(2))
    data = filesystem.read_bytes(state.path(run, "0"))
    filesystem.write_atomic(state.path(run, "0"), data[:cut])
    assert state.load(run, "0", "a") is None
    assert refusals(run)[0].startswith("cannot be read: ")


def test_a_file_of_another_origin_is_refused(run):
    import safetensors.torch

    filesystem.write_atomic(state.path(run, "0"), safetensors.torch.save({"x": torch.ones(1)}))
    assert state.load(run, "0", "a") is None
    assert len(refusals(run)) == 1


def test_odd_names_have_files_of_their_own(run):
    names = ["a b", "a_b", "a/b", "..", "\u72ac", "x" * 300, "x" * 301]
    paths = [state.path(run, name) for name in names]
    assert len(set(paths)) == len(names)
    files = [path.removeprefix(run.path("state") + "/") for path in paths]
    assert all(len(file) < 160 and file.isascii() and "/" not in file for file in files)
    for i, name in enumerate(names):
        save(run, name, step=i, x=torch.ones(1))
    assert [state.load(run, name, "a").step for name in names] == list(range(len(names)))
