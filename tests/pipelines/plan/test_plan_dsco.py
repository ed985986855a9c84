"""Counts of noise optimization and of plain samples equal those of tiny distillations."""

import pytest
from pipelines.plan.plan_counter import calls, done, planned, rows
from priors import write_tiny_prior

from raydd.distill.dsco.config import DscoConfig
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.plan.dsco import target_rows
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples

SMALL = {"steps": 4, "iterations": 3, "rounds": 2, "guidance": 2.0}
CASES = {
    "defaults": {},
    "unguided": {"guidance": 1.0},
    "chunks": {"chunk": 2},
    "thinned": {"rows_per_image": 4},
    "topup": {"bins": "topup", "rounds": 1, "chunk": 5},
    "two nets": {"num_extractors": 2},
    "real start": {"start": "real"},
    "free": {"access": "free", "templates": 7, "optimizer": "sgd", "norm": "penalty"},
    "packs": {"pack": 2},
    "packs in chunks": {"pack": 3, "chunk": 2, "rows_per_image": 4},
    "free packs": {"pack": 2, "access": "free", "templates": 4, "optimizer": "sgd"},
    "free, raw": {"access": "free", "features": "latent", "templates": 2, "optimizer": "sgd"},
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"), 8)


def options(tree, out, prior, **changes) -> DistillOptions:
    return DistillOptions(data=str(tree), out=str(out), prior=prior, **({"ipc": 5, "batch": 6} | changes))


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_noise_optimization(digits_tree, tmp_path, prior, changes):
    asked, method = options(digits_tree, tmp_path, prior), Dsco("dsco", DscoConfig(**(SMALL | changes)))
    found, real = planned(asked, method), None
    count, real = rows(found), done(asked, method)
    assert count["denoise"] == real["denoise"] > 0 and calls(found, "denoise") == real["denoise_calls"]
    assert count["feature"] + count["target"] + count["nopt"] == real["feature"]
    assert count["nopt"] == real["feature_back"]
    maps = count["map"] + count["nopt_free"] if changes.get("features") != "latent" else 0
    assert maps == real["map"]
    assert (count["paint"], count["encode"]) == (real["paint"], real["encode"])
    assert count["read 8 px"] == real["read 8 px"]
    assert (count["read 8 px"] == 48) == (changes.get("access") != "free")


def test_what_is_there_is_not_counted(digits_tree, tmp_path, prior):
    method = Dsco("dsco", DscoConfig(**SMALL))
    whole = rows(planned(options(digits_tree, tmp_path, prior), method))
    done(options(digits_tree, tmp_path, prior, classes="1"), method)
    rest = planned(options(digits_tree, tmp_path, prior), method)
    latents, classes = rest.stages
    assert (latents.done, len(latents.parts)) == (3, 0) and (classes.done, len(classes.parts)) == (1, 2)
    assert 3 * rows(rest)["denoise"] == 2 * whole["denoise"] and rows(rest)["encode"] == 0
    done(options(digits_tree, tmp_path, prior), method)
    assert not rows(planned(options(digits_tree, tmp_path, prior), method))
    again = rows(planned(options(digits_tree, tmp_path, prior, classes="1", force=True), method))
    assert 3 * again["denoise"] == whole["denoise"] and again["encode"] == 0
    assert rows(planned(options(digits_tree, tmp_path, prior, force=True), method)) == whole


def test_plain_samples(digits_tree, tmp_path, prior):
    asked = options(digits_tree, tmp_path, prior, batch=3)
    found = planned(asked, method := PriorSamples("prior", PriorConfig(steps=4, guidance=2.0)))
    count, real = rows(found), done(asked, method)
    assert count["denoise"] == real["denoise"] == 3 * 5 * 4 * 2
    assert calls(found, "denoise") == real["denoise_calls"] == 3 * 2 * 4
    assert count["paint"] == real["paint"] == 15 and "read 8 px" not in count + real


def test_stored_labels_ask_the_teacher(digits_tree, tmp_path, digits_teacher):
    prior = write_tiny_prior(tmp_path / "prior", ("0", "1", "2"), 16)
    asked = options(digits_tree, tmp_path / "run", prior, teacher=digits_teacher)
    online, stored = (PriorSamples("prior", PriorConfig(steps=2, guidance=1.0, labels=x)) for x in ("online", "single"))
    assert "teacher" not in rows(planned(asked, online))
    count = rows(planned(asked, stored))
    assert count["teacher"] == done(asked, stored)["classified"] == 15


def test_target_rows():
    """Images and rounds by hand: all, fewer rounds, a subset, and topped up to a multiple."""
    every = DscoConfig(rounds=5)
    assert target_rows(every, 10, 100) == 500
    few = DscoConfig(rounds=5, rows_per_image=25)
    assert [target_rows(few, 10, images) for images in (30, 100, 1000)] == [150, 200, 250]
    topup = DscoConfig(rounds=1, bins="topup")
    assert [target_rows(topup, 8, images) for images in (16, 17, 3)] == [16, 24, 16]
