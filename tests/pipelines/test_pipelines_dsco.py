"""DsCo as a method: latents, classes as units, resuming between steps, one class alone, and what is refused."""

import dataclasses
import json

import pytest
import torch
from pipelines.conftest import write_tree
from priors import write_tiny_prior

from raydd.distill.dsco.config import DscoConfig
from raydd.errors import Unfinished, UserError
from raydd.models.prior.opened import OpenedPrior
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples
from raydd.pipelines.request import open_job
from raydd.runtime import checkpoints
from raydd.runtime.work import Resources
from raydd.store import distilled, events, scores
from raydd.store.run import LATENTS, Run

LOCAL = Resources(executor="local")
SMALL = DscoConfig(steps=4, iterations=3, rounds=1, guidance=2.0)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"))


def options(tree, out, prior=None, **changes) -> DistillOptions:
    return DistillOptions(data=str(tree), out=str(out), **({"prior": prior, "ipc": 2} | changes))


def hashes(out) -> dict[str, str]:
    return json.loads((out / "distilled" / "dataset.json").read_text())["hashes"]


def test_source_to_set_and_again(tree, tmp_path, prior):
    manifest = distill(options(tree, tmp_path, prior), Dsco("dsco", SMALL), LOCAL)
    assert manifest["counts"] == {"0": 2, "1": 2, "2": 2} and manifest["size"] == 16
    run = Run(str(tmp_path))
    table = scores.read_label(Run(str(tmp_path), LATENTS), 1)
    assert table.num_rows == 16 and len(table["latent"][0].as_py()) == 256
    assert not (tmp_path / "scores").exists() and not list((tmp_path / "state").glob("class-*"))
    logs = [event for event in events.read(run) if event["event"] == "noise_optimized"]
    assert [len(event["steps"]) for event in logs] == [4, 4, 4]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    distill(options(tree, tmp_path, prior), Dsco("dsco", SMALL), LOCAL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert distilled.read_class(run, 0)[0].origin == "synthetic"


def test_one_class_is_made_again_and_alone(tree, tmp_path, prior):
    distill(options(tree, tmp_path / "all", prior), Dsco("dsco", SMALL), LOCAL)
    before = hashes(tmp_path / "all")
    again = options(tree, tmp_path / "all", prior, classes="1", force=True)
    assert distill(again, Dsco("dsco", SMALL), LOCAL)["revision"] > 1
    assert hashes(tmp_path / "all") == before
    # A class does not depend on which others are made.
    distill(options(tree, tmp_path / "one", prior, classes="1"), Dsco("dsco", SMALL), LOCAL)
    assert hashes(tmp_path / "one") == {"1": before["1"]}


def test_seeds_and_modes_differ(tree, tmp_path, prior):
    free = dataclasses.replace(SMALL, access="free", templates=4)
    made = {
        "seed0": (Dsco("dsco", SMALL), 0),
        "seed1": (Dsco("dsco", SMALL), 1),
        "free": (Dsco("dsco-free", free), 0),
        "plain": (PriorSamples("prior", PriorConfig(steps=4, guidance=2.0)), 0),
    }
    for name, (method, seed) in made.items():
        distill(options(tree, tmp_path / name, prior, seed=seed), method, LOCAL)
    assert len({tuple(hashes(tmp_path / name).values()) for name in made}) == 4
    assert not (tmp_path / "free" / "latents").exists() and not (tmp_path / "plain" / "latents").exists()


@pytest.fixture
def interrupt(tree, tmp_path, prior, monkeypatch):
    """Makes a set undisturbed, and one that saves its state whenever it can and is lost after so many times."""

    def run(method: Dsco, stop_at: int) -> None:
        distill(options(tree, tmp_path / "calm", prior), method, LOCAL)
        monkeypatch.setattr(checkpoints.SaveClock, "due", lambda self: True)
        saves, original = [], checkpoints.UnitWork.save_state

        def dying(self, tensors, step, facts=None):
            original(self, tensors, step, facts)
            saves.append(step)
            if len(saves) == stop_at:
                raise RuntimeError("lost")

        monkeypatch.setattr(checkpoints.UnitWork, "save_state", dying)
        with pytest.raises(Unfinished, match="lost"):
            distill(options(tree, tmp_path / "lost", prior), method, LOCAL)
        # A state replaces an earlier one, so its step must be larger.
        assert saves[:stop_at] == sorted(set(saves[:stop_at]))

    return run


@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_lost_worker_goes_on_between_steps(tree, tmp_path, prior, monkeypatch, interrupt, stop_at):
    method = Dsco("dsco", dataclasses.replace(SMALL, chunk=1))
    interrupt(method, stop_at)
    denoised, denoise = [], OpenedPrior.denoise
    monkeypatch.setattr(
        OpenedPrior, "denoise", lambda self, x, s, i, *a: denoised.append(i) or denoise(self, x, s, i, *a)
    )
    distill(options(tree, tmp_path / "lost", prior, classes="0"), method, LOCAL)
    # Two chunks of four steps, of which the saved ones are not done again (three saves a chunk: none after the last).
    assert len(denoised) == 8 - (1 if stop_at == 1 else 6)
    distill(options(tree, tmp_path / "lost", prior), method, LOCAL)
    assert hashes(tmp_path / "lost") == hashes(tmp_path / "calm")


@pytest.mark.parametrize("access", ["source", "free"])
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_pack_that_is_lost_goes_on_between_steps(tree, tmp_path, prior, interrupt, access, stop_at):
    """Source-free, the first two states are those of the templates of two classes."""
    method = Dsco("dsco", dataclasses.replace(SMALL, chunk=1, pack=2, access=access, templates=4))
    interrupt(method, stop_at)
    distill(options(tree, tmp_path / "lost", prior), method, LOCAL)
    assert hashes(tmp_path / "lost") == hashes(tmp_path / "calm")
    assert [event for event in events.read(Run(str(tmp_path / "lost"))) if event["event"] == "unit_resumed"]


def test_one_class_of_a_pack_is_made_again_and_alone(tree, tmp_path, prior):
    method = Dsco("dsco", dataclasses.replace(SMALL, pack=2))
    distill(options(tree, tmp_path / "all", prior), method, LOCAL)
    before = hashes(tmp_path / "all")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("images.parquet")}
    distill(options(tree, tmp_path / "all", prior, classes="1", force=True), method, LOCAL)
    assert hashes(tmp_path / "all") == before
    changed = {path.parent.name for path, at in files.items() if path.stat().st_mtime_ns != at}
    assert changed == {"label=1"}
    # Its pack is computed whole where it is the only one asked for.
    distill(options(tree, tmp_path / "one", prior, classes="1"), method, LOCAL)
    assert hashes(tmp_path / "one") == {"1": before["1"]}
    logs = [event["name"] for event in events.read(Run(str(tmp_path / "one"))) if event["event"] == "noise_optimized"]
    assert logs == ["1"]


def test_a_class_without_images_stands_in_the_way_of_itself_only(tmp_path, prior):
    tree = write_tree(tmp_path / "tree")
    for path in (tree / "train" / "1").iterdir():
        path.write_bytes(b"broken")
    method = Dsco("dsco", dataclasses.replace(SMALL, pack=3))
    with pytest.raises(Unfinished, match="'1' has no readable image"):
        distill(options(tree, tmp_path / "run", prior), method, LOCAL)
    assert set(distill(options(tree, tmp_path / "run", prior, classes="0,2"), method, LOCAL)["hashes"]) == {"0", "2"}


def test_a_prior_that_breaks_down_fails_its_class_only(tree, tmp_path, prior, monkeypatch):
    denoise = OpenedPrior.denoise

    def broken(self, x, schedule, i, labels, *rest):
        return denoise(self, x * (torch.nan if i == 2 and labels[0] == 1 else 1), schedule, i, labels, *rest)

    monkeypatch.setattr(OpenedPrior, "denoise", broken)
    with pytest.raises(Unfinished, match=r"step 2: the prior's prediction is not finite.*; the others are kept"):
        distill(options(tree, tmp_path, prior), Dsco("dsco", SMALL), LOCAL)
    assert set(hashes(tmp_path)) == {"0", "2"}


def test_what_cannot_work_is_refused(tree, tmp_path, prior):
    def refused(method=None, **changes):
        with pytest.raises(UserError) as caught:
            distill(options(tree, tmp_path / "x", **({"prior": prior} | changes)), method or Dsco("dsco", SMALL), LOCAL)
        assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
        return str(caught.value)

    assert "add --prior DIR" in refused(prior=None, size=16)
    assert "--size 32" in refused(size=32)
    assert "--eta 0" in refused(Dsco("dsco", dataclasses.replace(SMALL, eta=0)))
    assert "unknown class '7'" in refused(classes="7")
    free = write_tiny_prior(tmp_path / "free", None)
    assert "unconditional" in refused(prior=free)
    real = dataclasses.replace(SMALL, start="real", guidance=2.0)
    assert "--guidance 1" in refused(Dsco("dsco", real), prior=free)
    assert "unconditional" in refused(PriorSamples("prior", PriorConfig(guidance=1)), prior=free)
    few = write_tiny_prior(tmp_path / "few", ("a", "b"))
    assert "'0'" in refused(prior=few)
    pairs = tmp_path / "map.json"
    pairs.write_text('{"0": "a", "1": "b"}')
    assert "'2'" in refused(prior=few, class_map=str(pairs))
    pairs.write_text("[1]")
    assert "--class-map" in refused(prior=few, class_map=str(pairs))


def test_an_unconditional_prior_starts_from_real_images(tree, tmp_path):
    free = write_tiny_prior(tmp_path / "prior", None)
    method = Dsco("dsco", dataclasses.replace(SMALL, start="real", guidance=1.0))
    assert distill(options(tree, tmp_path / "run", free), method, LOCAL)["images"] == 6


def test_a_class_map_decides_the_prior_label(tree, tmp_path, prior):
    other = write_tiny_prior(tmp_path / "other", ("a", "b", "c"))
    pairs = tmp_path / "map.json"
    pairs.write_text('{"0": "a", "1": 1, "2": "c"}')
    plain = PriorSamples("prior", PriorConfig(steps=3, guidance=2.0))
    distill(options(tree, tmp_path / "mapped", other, class_map=str(pairs)), plain, LOCAL)
    distill(options(tree, tmp_path / "named", prior), plain, LOCAL)
    assert hashes(tmp_path / "mapped") == hashes(tmp_path / "named")


def test_larger_classes_come_first(tmp_path, prior):
    tree = write_tree(tmp_path / "tree")
    for extra in range(20):
        (tree / "train" / "2" / f"more-{extra}.png").write_bytes((tree / "train" / "2" / "00.png").read_bytes())
    job = open_job(options(tree, tmp_path / "run", prior))
    costs = [Dsco("dsco", SMALL).cost(job, label) for label in range(3)]
    assert costs == [12 + 16, 12 + 16, 12 + 36]
    capped = Dsco("dsco", dataclasses.replace(SMALL, rows_per_image=4))
    assert [capped.cost(job, label) for label in range(3)] == [20, 20, 20]
