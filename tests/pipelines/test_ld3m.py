"""LD3M as a method: every loss from source to set, packs of classes, resuming, what it starts from, what it refuses."""

import json
import math
import shutil

import pytest
import torch
from commandline import done, refused, snapshot
from pipelines.conftest import write_tree
from pipelines.small_ld3m import LOCAL, PIXELS, SIZE, files, kept, made, method, options, pictures, write_experts
from priors import write_tiny_prior

from raydd.distill.controls import ControlConfig
from raydd.distill.ld3m import memory
from raydd.distill.ld3m.loop import Descent
from raydd.distill.ld3m.objective import ClassMatching
from raydd.errors import Unfinished, UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill, prepare
from raydd.pipelines.dope import DopeOptions, dope
from raydd.pipelines.request import open_job
from raydd.runtime import checkpoints
from raydd.store import distilled, events, state
from raydd.store.run import Run

WAYS = {
    "dm": {},
    "dc": {"loss": "dc"},
    "mtt": {"loss": "mtt"},
    "one step": {"steps": 1},
    "no step": {"steps": 0, "learn": "latent"},
    "paper": {"anchor": "mean", "graph": "two", "optimizer": "adam"},
    "released": {"noise": "pass", "graph": "two"},
    "pixels": PIXELS,
    "pixels, mtt": PIXELS | {"loss": "mtt", "mtt_gradient": "tesla", "lr_latent": 10.0},
}


def way(name: str, experts: str) -> dict:
    """Switches of one of `WAYS`, with the experts where it needs them."""
    return WAYS[name] | ({"experts": experts} if "mtt" in name else {})


@pytest.mark.parametrize("name", WAYS)
def test_source_to_set_and_again(digits_tree, tmp_path, small_prior, small_experts, name):
    prior = None if "pixels" in name else small_prior
    switches = way(name, small_experts)
    manifest = made(digits_tree, tmp_path, prior, **switches)
    assert manifest["counts"] == {"0": 2, "1": 2, "2": 2} and manifest["size"] == SIZE
    moved = 0.0
    for label in range(3):
        images = distilled.read_class(Run(str(tmp_path)), label)
        assert {image.origin for image in images} == {"synthetic"}
        assert len({image.source_keys for image in images}) == 2
        assert all(key.startswith(f"{label}/") for image in images for key in image.source_keys)
        found = kept(tmp_path, label)
        assert len(found.loss) == 3 and found.heldout_iteration.tolist() == [0, 1, 2, 3]
        assert all(math.isfinite(value) for value in (*found.loss.tolist(), *found.heldout.tolist()))
        moved += float((pictures(tmp_path, label).float() - found.initial.float()).abs().mean())
    assert moved > 0.05
    assert not list((tmp_path / "state").glob("*"))
    before = snapshot(tmp_path)
    made(digits_tree, tmp_path, prior, **switches)
    assert snapshot(tmp_path) == before


def test_iteration_0_is_the_start_through_the_generator(digits_tree, tmp_path, small_prior):
    """An exact row between the real images and the final set (ld3m.md, section 7)."""
    made(digits_tree, tmp_path / "final", small_prior)
    made(digits_tree, tmp_path / "start", small_prior, iterations=0)
    made(digits_tree, tmp_path / "pixels", **PIXELS, iterations=0)
    for label in range(3):
        final, start = kept(tmp_path / "final", label), kept(tmp_path / "start", label)
        assert torch.equal(pictures(tmp_path / "start", label), final.initial)
        assert torch.equal(start.start, final.start) and start.heldout[0] == final.heldout[0] and not len(start.loss)
        # Without a prior, what it starts from is what it ends at.
        assert torch.equal(pictures(tmp_path / "pixels", label), final.start)


def test_packs_are_whole_classes_of_the_configuration(digits_tree, tmp_path, small_prior, small_experts):
    job = open_job(options(digits_tree, tmp_path, small_prior))
    for chunk, packs in ((1, [(0,), (1,), (2,)]), (2, [(0,), (1,), (2,)]), (4, [(0, 1), (2,)]), (99, [(0, 1, 2)])):
        assert method(chunk=chunk).packs(job) == packs
    assert method(experts=small_experts, chunk=1).packs(job) == [(0, 1, 2)]
    units = prepare(options(digits_tree, tmp_path, small_prior, classes="1"), method()).units
    assert [(unit.labels, unit.wanted, unit.key) for unit in units] == [((0, 1), (1,), "0+1")]


@pytest.mark.parametrize("name", ["dm", "mtt"])
def test_one_class_alone_is_the_class_of_the_whole(digits_tree, tmp_path, small_prior, small_experts, name):
    """Only what is asked for is committed and kept, from the same packs and with the same bits."""
    switches = way(name, small_experts)
    made(digits_tree, tmp_path / "whole", small_prior, **switches)
    whole = files(tmp_path / "whole", "distilled", "learned")
    part = made(digits_tree, tmp_path / "part", small_prior, ask={"classes": "1"}, **switches)
    assert part["counts"] == {"1": 2}
    found = files(tmp_path / "part", "distilled", "learned")
    assert set(found) == {"distilled/label=1/images.parquet", "learned/label=1.safetensors"}
    assert all(found[name] == whole[name] for name in found)

    before = snapshot(tmp_path / "whole")
    redone = made(digits_tree, tmp_path / "whole", small_prior, ask={"classes": "1", "force": True}, **switches)
    after = snapshot(tmp_path / "whole")
    assert files(tmp_path / "whole", "distilled", "learned") == whole and redone["revision"] > 1
    touched = {name for name in whole if after[name] != before[name]}
    assert touched == {"distilled/label=1/images.parquet", "learned/label=1.safetensors"}


def test_seeds_and_chunks(digits_tree, tmp_path, small_prior):
    sets = {seed: made(digits_tree, tmp_path / f"{seed}", small_prior, ask={"seed": seed})["hashes"] for seed in (0, 1)}
    assert not set(sets[0].values()) & set(sets[1].values())
    for folder in ("0", "1"):
        assert (tmp_path / folder / "learned" / "label=2.safetensors").exists()
    # Batches of another shape round otherwise, so the packing belongs to the configuration.
    with pytest.raises(UserError, match=r"options.learn.chunk: 4 -> 2"):
        made(digits_tree, tmp_path / "0", small_prior, chunk=2)


@pytest.mark.parametrize("name", ["dm", "mtt", "paper"])
def test_a_lost_worker_goes_on_between_iterations(digits_tree, tmp_path, small_prior, small_experts, monkeypatch, name):
    """Killed after its second save: two of five iterations are not done again, and every bit is the same."""
    ask, switches = {"classes": "0"}, way(name, small_experts) | {"iterations": 5}
    made(digits_tree, tmp_path / "calm", small_prior, ask=ask, **switches)
    monkeypatch.setattr(checkpoints.SaveClock, "due", lambda self: True)
    saves, original = [], checkpoints.UnitWork.save_state

    def dying(self, tensors, step, facts=None):
        original(self, tensors, step, facts)
        saves.append(step)
        if step == 2 and saves.count(2) == 1:
            raise RuntimeError("lost")

    monkeypatch.setattr(checkpoints.UnitWork, "save_state", dying)
    with pytest.raises(Unfinished, match="lost"):
        made(digits_tree, tmp_path / "lost", small_prior, ask=ask, **switches)
    assert not list((tmp_path / "lost").rglob("*.parquet")) and list((tmp_path / "lost" / "state").glob("class-*"))
    taken, gradients = [], Descent.gradients
    monkeypatch.setattr(
        Descent, "gradients", lambda self, z, c, iteration: taken.append(iteration) or gradients(self, z, c, iteration)
    )
    made(digits_tree, tmp_path / "lost", small_prior, ask=ask, **switches)
    # No save after the last iteration: the commit follows.
    assert taken == [2, 3, 4] and saves == [1, 2, 3, 4]
    folders = "distilled", "learned"
    assert files(tmp_path / "lost", *folders) == files(tmp_path / "calm", *folders)
    resumed = [event for event in events.read(Run(str(tmp_path / "lost"))) if event["event"] == "unit_resumed"]
    assert [event["step"] for event in resumed] == [2]
    assert not list((tmp_path / "lost" / "state").glob("*"))


def test_a_loss_that_is_not_finite_stops_its_pack_and_keeps_the_last_good_state(
    digits_tree, tmp_path, small_prior, monkeypatch
):
    call = ClassMatching.__call__

    def broken(self, iteration, synthetic):
        loss, gradient = call(self, iteration, synthetic)
        return (math.nan if iteration == 2 and "0" in self.pack.names else loss), gradient

    monkeypatch.setattr(ClassMatching, "__call__", broken)
    monkeypatch.setattr(checkpoints.SaveClock, "due", lambda self: True)
    with pytest.raises(Unfinished, match=r"0\+1' failed: .*iteration 2: the loss is not finite; use a lower --lr-"):
        made(digits_tree, tmp_path, small_prior)
    run = Run(str(tmp_path))
    assert list(distilled.read_manifest(run)["counts"]) == ["2"]
    good = state.load(run, "0+1", distilled.done(run, 2)["config_hash"])
    assert good.step == 2 and all(tensor.isfinite().all() for tensor in good.tensors.values())
    assert [path.name for path in (tmp_path / "learned").glob("label=*")] == ["label=2.safetensors"]


def test_a_gradient_that_is_not_finite_stops_too(digits_tree, tmp_path, monkeypatch):
    def broken(self, iteration, synthetic):
        return 1.0, torch.full_like(synthetic, math.inf)

    monkeypatch.setattr(ClassMatching, "__call__", broken)
    with pytest.raises(Unfinished, match="iteration 0: the gradient is not finite"):
        made(digits_tree, tmp_path, **PIXELS)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_finished_run_is_a_start(digits_tree, tmp_path, small_prior):
    """Any run of the source: its images are encoded, in its order, and its source keys are kept."""
    distill(options(digits_tree, tmp_path / "random"), Control("random", ControlConfig()), LOCAL)
    start = str(tmp_path / "random")
    made(digits_tree, tmp_path / "pixels", init=start, iterations=0, **PIXELS)
    for label in range(3):
        given, found = (distilled.read_class(Run(str(tmp_path / name)), label) for name in ("random", "pixels"))
        assert [image.data for image in found] == [image.data for image in given]
        assert [image.source_keys for image in found] == [image.source_keys for image in given]
    made(digits_tree, tmp_path / "ld3m", small_prior, ask={"ipc": 1}, init=start)
    assert torch.equal(kept(tmp_path / "ld3m", 2).start, pictures(tmp_path / "random", 2)[:1])
    # Another content under the same path is another start.
    distill(options(digits_tree, start, seed=1, force=True), Control("random", ControlConfig()), LOCAL)
    with pytest.raises(UserError, match=r"options.inputs"):
        made(digits_tree, tmp_path / "ld3m", small_prior, ask={"ipc": 1}, init=start)


def test_what_ld3m_made_can_be_doped(digits_tree, tmp_path):
    made(digits_tree, tmp_path / "run", **PIXELS)
    doping = DopeOptions(
        run=str(tmp_path / "run"),
        out=str(tmp_path / "doped"),
        per_class=2,
        target="label",
        protocol="quick@1",
        flip=False,
    )
    manifest = dope(doping, LOCAL)
    assert manifest["counts"] == {"0": 4, "1": 4, "2": 4} and manifest["doping"]["distilled"] == 6


def test_an_unconditional_prior_learns_latents_alone(digits_tree, tmp_path, capsys):
    free = write_tiny_prior(tmp_path / "prior", None, SIZE)
    made(digits_tree, tmp_path / "run", free)
    found = kept(tmp_path / "run", 0)
    assert found.conditions is None and found.facts["numbers_per_image"] == {"latent": SIZE * SIZE}
    assert "warning" not in capsys.readouterr().out


def test_guidance_is_off_without_a_null_label(digits_tree, tmp_path, capsys):
    prior = write_tiny_prior(tmp_path / "prior", ("0", "1", "2"), SIZE)
    facts = json.loads((tmp_path / "prior" / "raydd.json").read_text())
    config = tmp_path / "prior" / "raydd.json"
    # The fourth row of the table is then a class of its own.
    config.write_text(json.dumps(facts | {"null_label": None, "classes": ["0", "1", "2", "3"]}))
    made(digits_tree, tmp_path / "run", prior)
    assert "has no null label: guidance is off" in capsys.readouterr().out
    for guidance in (0.0, 3.0):
        with pytest.raises(UserError, match="no null label: use --guidance 1"):
            made(digits_tree, tmp_path / "other", prior, guidance=guidance)
    assert not (tmp_path / "other").exists()


def test_dearer_classes_come_first(tmp_path, small_prior):
    tree = write_tree(tmp_path / "tree")
    for extra in range(20):
        shutil.copy(tree / "train" / "2" / "00.png", tree / "train" / "2" / f"more-{extra}.png")
    job = open_job(options(tree, tmp_path / "run", small_prior))
    wide = method(real_batch=30)
    assert wide.cost(job, 2) > wide.cost(job, 0) == wide.cost(job, 1)
    assert method(steps=5).cost(job, 0) > method(steps=2).cost(job, 0)


REFUSED = [
    ({"steps": -1}, {}, "--steps -1: must be at least 0"),
    ({"steps": 101}, {}, "101"),
    ({"generator": "pixels"}, {"size": None, "prior": None}, "no --size"),
    ({}, {"prior": None}, "ld3m needs a prior: add --prior DIR"),
    ({}, {"size": 16}, "--size 16 is more than the prior's 8 px"),
    ({}, {"ipc": 0}, "--ipc 0: must be at least 1"),
    ({}, {"ipc": 17}, "--ipc 17 needs 17 source images per class"),
    (PIXELS | {"init": "gaussian"}, {"ipc": 0, "prior": None}, "--ipc 0: must be at least 1"),
    ({}, {"classes": "7"}, "unknown class '7'"),
    ({"matcher": "covnet3"}, {}, "unknown network 'covnet3': did you mean 'convnet3'"),
    ({"matcher": "convnet4"}, {}, "needs at least 16 px, not 8"),
    ({"steps": 0, "learn": "condition"}, {}, "there is no condition; use --learn latent"),
    ({"loss": "mtt"}, {}, "--loss mtt needs --experts DIR"),
    ({"iterations": -1}, {}, "--iterations -1: must be at least 0"),
]


@pytest.mark.parametrize(("switches", "ask", "message"), REFUSED, ids=[message[:30] for _, _, message in REFUSED])
def test_what_cannot_work_is_refused(digits_tree, tmp_path, small_prior, switches, ask, message):
    with pytest.raises(UserError) as caught:
        made(digits_tree, tmp_path / "run", ask={"prior": small_prior} | ask, **switches)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def no(tree, out, prior, ask=None, **switches) -> str:
    """The one line that a request is refused with, before anything is written."""
    with pytest.raises(UserError) as caught:
        made(tree, out, prior, ask=ask, **switches)
    assert not out.exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_priors_that_do_not_fit(digits_tree, tmp_path, small_prior):
    run = tmp_path / "run"
    free = write_tiny_prior(tmp_path / "free", None, SIZE)
    assert "is unconditional, there is no condition to learn" in no(digits_tree, run, free, learn="condition")
    assert "has no null label: use --guidance 1" in no(digits_tree, run, free, guidance=3.0)
    few = write_tiny_prior(tmp_path / "few", ("0", "1"), SIZE)
    assert "knows no class '2'" in no(digits_tree, run, few)
    # Another kind of embedder or autoencoder is named.
    copy = shutil.copytree(small_prior, tmp_path / "copy")
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps(config | {"class_embed_type": "identity"}))
    assert "'identity'" in no(digits_tree, run, str(copy))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "AutoencoderOobleck"]}))
    assert "AutoencoderOobleck as its vqvae" in no(digits_tree, run, str(copy))


def test_embedders_that_are_not_where_expected_are_named(digits_tree, tmp_path, small_prior, monkeypatch):
    from raydd.pipelines import job

    spec = open_job(options(digits_tree, tmp_path / "run", small_prior)).prior
    loaded = job.load_prior(small_prior, classes=spec.classes)
    loaded.net.class_embedding = torch.nn.Linear(4, 4)
    monkeypatch.setattr(job, "_load_prior", lambda *_: loaded)
    said = no(digits_tree, tmp_path / "run", small_prior)
    assert "UNet2DModel" in said and "Linear" in said and "Embedding" in said


def test_experts_that_do_not_fit(digits_tree, tmp_path, small_prior, small_experts):
    run = tmp_path / "run"

    def said(experts=small_experts, tree=digits_tree, ask=None, **switches):
        return no(tree, run, small_prior, ask, experts=str(experts), **switches)

    assert "no experts in" in said(tmp_path / "nowhere")
    assert "are of convnet2, not convnet3" in said(matcher="convnet3")
    assert "have 2 epochs, but epoch 3 is to be read" in said(max_start=2)
    assert "--experts serve --loss mtt, not dm" in said(loss="dm")
    other = write_experts(digits_tree, tmp_path / "size", size=16)
    assert "work at 16 px, not 8 px" in said(other)
    copy = shutil.copytree(small_experts, tmp_path / "copy")
    index = json.loads((copy / "experts.json").read_text())
    for changes, message in (
        ({"mean": [0.5, 0.5, 0.5]}, "were normalized by mean [0.5, 0.5, 0.5]"),
        ({"norm": "batch"}, "of batch norm"),
        ({"width": 9}, "have other parameters than raydd's convnet2"),
        ({"classes": ["0", "2", "1"]}, "call class 1 '2', not '1'"),
    ):
        (copy / "experts.json").write_text(json.dumps(index | changes))
        assert message in said(copy), message


def test_experts_of_some_classes_refuse_a_source_of_more(digits_tree, tmp_path, small_prior):
    few = write_experts(digits_tree, tmp_path / "few", classes="0,2", count=1)
    line = no(digits_tree, tmp_path / "run", small_prior, experts=few)
    assert "know 2 classes, the source has 3" in line and "train-experts' without --classes" in line


def test_starts_that_do_not_fit(digits_tree, tmp_path, small_prior):
    random = Control("random", ControlConfig())
    distill(options(digits_tree, tmp_path / "one", ipc=1), random, LOCAL)
    distill(options(digits_tree, tmp_path / "part", classes="0,1"), random, LOCAL)
    run = tmp_path / "run"
    assert "--init " in (line := no(digits_tree, run, small_prior, init="reel")) and "real, gaussian" in line
    said = no(digits_tree, run, small_prior, init=str(tmp_path / "one"))
    assert "has 1 images of class '0', fewer than --ipc 2" in said
    assert "has 0 images of class '2'" in no(digits_tree, run, small_prior, init=str(tmp_path / "part"))
    with pytest.raises(UserError, match="is --out itself"):
        made(digits_tree, tmp_path / "one", small_prior, ask={"ipc": 1, "force": True}, init=str(tmp_path / "one"))
    assert list((tmp_path / "one").rglob("*.parquet"))


def test_what_does_not_fit_into_memory_is_said_with_the_remedy(digits_tree, tmp_path, small_prior, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(Unfinished, match=r"GiB are free: .*lower.* --chunk"):
        made(digits_tree, tmp_path, small_prior)


def test_an_unused_prior_is_said(digits_tree, tmp_path, small_prior, capsys):
    prepare(options(digits_tree, tmp_path, small_prior), method(**PIXELS))
    assert "--prior has no effect on --generator pixels" in capsys.readouterr().out


def test_the_command(digits_tree, tmp_path, small_prior, small_experts):
    run = ("distill", "ld3m", "--data", digits_tree, "--ipc", 1, "--size", SIZE, "--executor", "local")
    quick = ("--iterations", 2, "--heldout", 1, "--real-batch", 4, "--matcher", "convnet1")
    line = done(*run, "--out", tmp_path / "dm", "--prior", small_prior, *quick, "--steps", 2)
    assert "ld3m: 3 images" in line
    experts = ("--loss", "mtt", "--experts", small_experts, "--max-start", 1, "--iterations", 1, "--heldout", 0)
    line = done(*run, "--out", tmp_path / "mtt", "--preset", "ld3m-pixels", *experts)
    assert "ld3m-pixels-mtt: 3 images" in line
    assert Run(str(tmp_path / "mtt")).read()["config"]["distill"]["options"]["learn"]["generator"] == "pixels"
    assert "unknown preset 'ld3m-dem': did you mean 'ld3m-demo'" in refused("distill", "ld3m", "--preset", "ld3m-dem")
    said = refused(*run, "--out", tmp_path / "x", "--preset", "ld3m-autoencoder", "--learn", "both", "--steps", -2)
    assert "--steps -2" in said and not (tmp_path / "x").exists()


def test_preset_values_are_shown_as_defaults():
    text = " ".join(done("distill", "ld3m", "--preset", "ld3m-released", "--help").split())
    assert "(default: 10000)" in text and "(default: two)" in text
