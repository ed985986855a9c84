"""A pack of LD3M: the run's rates, whoever measures them, and what is kept of each class."""

import dataclasses
import json
import math

import pytest
import torch
from commandline import contents
from pipelines.conftest import write_tree
from pipelines.small_ld3m import LOCAL, PIXELS, SIZE, files, kept, made, method, options, prepared, write_experts
from priors import write_tiny_prior

from raydd.distill.ld3m.loop import Rates
from raydd.errors import Unfinished, UserError
from raydd.keyed import hash64
from raydd.pipelines import ld3m_work
from raydd.pipelines.distill import distill, prepare
from raydd.pipelines.ld3m_work import matcher_of, student_of
from raydd.runtime.work import Context
from raydd.store import events
from raydd.store.run import Run
from raydd.store.trajectories import open_experts

AUTO = {"lr_latent": None, "lr_cond": None}


def test_rates_are_measured_once_for_the_run_whoever_comes_first(digits_tree, tmp_path, small_prior, monkeypatch):
    calls, calibrate = [], ld3m_work.calibrate
    monkeypatch.setattr(ld3m_work, "calibrate", lambda d, z, c: calls.append(d.pack.names) or calibrate(d, z, c))
    for name, order in (("forward", (0, 1, 2)), ("backward", (2, 1, 0))):
        request, way = options(digits_tree, tmp_path / name, small_prior), method(chunk=1, steps=1, **AUTO)
        everything = prepare(request, way)
        everything.begin()
        for pack in order:
            everything.units[pack].run(Context())
        everything.write_manifest()
    # The pack that is measured is the run's, not the first to be computed.
    assert len(calls) == 2 and calls[0] == calls[1]
    folders = "distilled", "learned"
    assert files(tmp_path / "forward", *folders) == files(tmp_path / "backward", *folders)
    (settled,) = [e for e in events.read(Run(str(tmp_path / "forward"))) if e["event"] == "rates_settled"]
    rates = json.loads((tmp_path / "forward" / "learned" / "rates.json").read_text())
    assert (settled["latent"], settled["cond"]) == (rates["latent"], rates["cond"])
    for label in range(3):
        assert kept(tmp_path / "forward", label).facts["rates"] == {"latent": rates["latent"], "cond": rates["cond"]}
    assert 0 < rates["latent"] != rates["cond"] > 0


def test_rates_of_another_configuration_are_not_taken(digits_tree, tmp_path):
    descent, start, work = prepared(digits_tree, tmp_path, **PIXELS | AUTO)
    rates, place = work._rates(descent, start), tmp_path / "learned" / "rates.json"
    known = json.loads(place.read_text())
    assert rates == Rates(known["latent"], known["cond"]) and work._rates(descent, start) == rates
    place.write_text(json.dumps(known | {"latent": 7.0}))
    assert work._rates(descent, start).latent == 7.0
    place.write_text(json.dumps(known | {"latent": 7.0, "config_hash": "of another run"}))
    assert work._rates(descent, start) == rates


def test_given_rates_are_taken_as_they_are(digits_tree, tmp_path, small_prior, monkeypatch):
    monkeypatch.setattr(ld3m_work, "calibrate", lambda *_: pytest.fail("measured"))
    for given, wanted in (
        ({}, (0.1, 0.01)),
        ({"learn": "latent", "lr_cond": None}, (0.1, 0.0)),
        ({"learn": "condition", "lr_latent": None}, (0.0, 0.01)),
        ({"iterations": 0, **AUTO}, (0.0, 0.0)),
    ):
        descent, start, work = prepared(digits_tree, tmp_path, small_prior, **given)
        assert work._rates(descent, start) == Rates(*wanted)
    assert not tmp_path.joinpath("learned").exists()


def test_rates_are_measured_on_the_next_pack_where_one_cannot_be_read(tmp_path):
    """A class without images fails its own pack: whichever the seed would have measured, the others are made."""
    tree = write_tree(tmp_path / "tree")
    for path in sorted((tree / "train" / "0").iterdir())[1:]:
        path.write_bytes(b"")
    first = []
    for seed in range(4):
        with pytest.raises(Unfinished, match=r"/0' failed: class '0' has 1 readable images"):
            made(tree, tmp_path / f"{seed}", ask={"seed": seed}, **PIXELS | AUTO | {"chunk": 1})
        found = {label: kept(tmp_path / f"{seed}", label) for label in range(3)}
        assert found[0] is None and found[1].facts["rates"] == found[2].facts["rates"]
        first.append(min(range(3), key=lambda label: hash64(seed, "rates", (label,))))
    assert 0 in first and set(first) != {0}


def test_a_step_moves_by_the_share_that_was_asked_for(digits_tree, tmp_path):
    """What automatic rates promise: about `move` of the size per step, here of the first one."""
    descent, start, work = prepared(digits_tree, tmp_path, **PIXELS | AUTO, move=0.02)
    after = []
    descent.run(work._load(start), work._rates(descent, start), after.append)
    moved = float((after[0].z - start.z).square().mean().sqrt() / start.z.square().mean().sqrt())
    assert 0.02 / 3 < moved < 0.02 * 3


def test_what_is_kept_of_a_class(digits_tree, tmp_path, small_prior):
    made(digits_tree, tmp_path / "run", small_prior)
    found = kept(tmp_path / "run", 1)
    assert found.latents.shape == (2, 1, SIZE, SIZE) and found.conditions.shape == (2, 32)
    assert found.iteration.tolist() == [0, 1, 2] and found.start.shape == (2, 3, SIZE, SIZE)
    facts = found.facts
    assert (facts["class_name"], facts["classes_together"], facts["method"]) == ("1", 2, "ld3m")
    assert facts["numbers_per_image"] == {"latent": 64, "condition": 32}
    assert facts["rates"] == {"latent": 0.1, "cond": 0.01}
    assert len(facts["config_hash"]) > 8
    # The latents that were learned, not those at the start.
    descent, start, work = prepared(digits_tree, tmp_path / "other", small_prior)
    state = descent.run(work._load(start), Rates(0.1, 0.01))
    assert torch.equal(found.latents, state.z[2:].half()) and torch.equal(found.conditions, state.c[2:].half())
    assert not torch.equal(state.z, start.z) and torch.equal(kept(tmp_path / "run", 0).loss, found.loss)
    # Per class, so that packs of any size can be compared.
    assert found.loss.tolist() == pytest.approx([loss / 2 for loss in state.losses])
    assert found.heldout.tolist() == pytest.approx([value / 2 for _, value in state.heldout])


def test_images_are_made_at_the_size_of_the_job(digits_tree, tmp_path):
    prior = write_tiny_prior(tmp_path / "prior", ("0", "1", "2"), 16)
    made(digits_tree, tmp_path / "run", prior, iterations=1)
    found = kept(tmp_path / "run", 0)
    assert found.latents.shape[-1] == 16
    assert found.start.shape[-1] == found.initial.shape[-1] == SIZE


def test_the_matcher_is_that_of_the_literature():
    learn = method(matcher=None).learn
    assert [matcher_of(learn, size) for size in (32, 64, 128, 256)] == ["convnet3", "convnet4", "convnet5", "convnet6"]
    assert matcher_of(method(matcher="convnet2").learn, 128) == "convnet2"


def test_the_student_is_the_experts_network(digits_tree, tmp_path, small_experts):
    experts = open_experts(small_experts)
    student = student_of(experts)
    assert (tuple(student.names), tuple(student.shapes)) == (experts.names, experts.shapes)
    point = experts.load(0).at(2)
    logits = student(point, torch.randn(4, 3, SIZE, SIZE))
    assert logits.shape == (4, 3) and logits.isfinite().all()


def test_alpha_goes_on_where_it_was(digits_tree, tmp_path, small_experts):
    """MTT carries its learned rate beside the images: stopping in the middle changes no bit of it."""
    switches = PIXELS | {"experts": small_experts, "student_lr_lr": 1e-3, "iterations": 4, "lr_latent": 10.0}
    descent, start, work = prepared(digits_tree, tmp_path, **switches)
    seen = []
    whole = descent.run(work._load(start), Rates(10.0, 0.0), seen.append)
    again, _, work = prepared(digits_tree, tmp_path, **switches)
    assert again.objective.alpha != whole.memory["alpha"]
    rest = again.run(seen[1], Rates(10.0, 0.0))
    assert torch.equal(rest.z, whole.z) and rest.losses == whole.losses
    assert torch.equal(rest.memory["alpha"], whole.memory["alpha"]) and float(whole.memory["alpha"]) != 0.01


def test_experts_that_vanish_fail_in_one_line(digits_tree, tmp_path):
    experts = write_experts(digits_tree, tmp_path / "experts", count=1)
    (tmp_path / "experts" / "expert-00000.safetensors").unlink()
    with pytest.raises(Unfinished, match=r"expert-00000.safetensors is missing .*'raydd train-experts'"):
        made(digits_tree, tmp_path / "run", experts=experts, **PIXELS)


def test_dm_lowers_the_held_out_loss(digits_tree, tmp_path):
    """Row 16 of ld3m.md, in small: what was never stepped on falls too."""
    switches = PIXELS | {"iterations": 90, "heldout": 4, "matcher": "convnet3", "real_batch": 16, "init": "gaussian"}
    made(digits_tree, tmp_path, ask={"classes": "0"}, chunk=1, **(switches | AUTO | {"move": 0.1}))
    heldout = kept(tmp_path, 0).heldout
    assert math.isfinite(heldout[0]) and heldout[-1] < 0.9 * heldout[0]


def test_workers_meet_no_state_of_each_other(digits_tree, tmp_path, small_prior):
    """Two packs in one process, in any order, give what each gives in a process of its own (a frozen prior)."""
    distill(options(digits_tree, tmp_path / "both", small_prior), method(), LOCAL)
    for name in ("2", "0"):
        distill(options(digits_tree, tmp_path / "each", small_prior, classes=name), method(), LOCAL)
    both, each = (contents(tmp_path / name) for name in ("both", "each"))
    for label in (0, 2):
        assert both[f"distilled/label={label}/images.parquet"] == each[f"distilled/label={label}/images.parquet"]


def test_foreign_experts_are_refused(small_experts):
    experts = open_experts(small_experts)
    with pytest.raises(UserError, match="unknown norm 'odd'"):
        student_of(dataclasses.replace(experts, norm="odd"))
    with pytest.raises(UserError, match="unknown network"):
        student_of(dataclasses.replace(experts, arch="convet2"))
