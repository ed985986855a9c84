"""Counts of LD3M equal those of tiny optimizations: forwards, forwards computed again, backwards, matching, reading."""

import pytest
from pipelines.plan.plan_counter import calls, done, planned, rows
from pipelines.small_ld3m import PIXELS, SIZE, method, options
from tiny_networks import tiny_autoencoder, tiny_dit

from raydd.errors import UserError
from raydd.models.prior.writer import write_pipeline
from raydd.pipelines.plan.ld3m import kept_steps
from raydd.pipelines.request import open_job

KEPT = {"keep_steps": 0}
CASES = {
    "one graph": {},
    "two graphs": {"graph": "two", "noise": "pass"},
    "kept": {"keep_steps": 1},
    "unguided": {"guidance": 1.0},
    "pool": {"pool": 2, "iterations": 12},
    "latents alone": {"learn": "latent"},
    "conditions alone": {"learn": "condition"},
    "mean": {"anchor": "mean"},
    "gaussian": {"init": "gaussian"},
    "gradients": {"loss": "dc"},
    "no held-out": {"heldout": 0},
    "no iteration": {"iterations": 0},
    "autoencoder alone": {"steps": 0, "learn": "latent"},
    "pixels": PIXELS,
    "one pack, rates measured": {"lr_latent": None, "lr_cond": None, "chunk": 6},
    "adam, rates by size": {"lr_latent": None, "lr_cond": None, "optimizer": "adam"},
}


def same(count, real) -> None:
    """Everything that both count."""
    for kind in ("denoise", "denoise_back", "paint", "encode", "match_real", "match_net", "student", "student_held"):
        assert count[kind] == real[kind], kind
    assert count["match"] + count["match_held"] == real["matched"]
    for kind in (set(count) | set(real)) & {"read 8 px", "read 16 px"}:
        assert count[kind] == real[kind], kind


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_optimization(digits_tree, tmp_path, small_prior, changes):
    asked = options(digits_tree, tmp_path, None if changes.get("generator") else small_prior)
    learner = method(**(KEPT | changes))
    found = planned(asked, learner)
    count, real = rows(found), done(asked, learner)
    same(count, real)
    if "denoise" in count:
        assert calls(found, "denoise") == real["denoise_calls"]


def test_the_formula(digits_tree, tmp_path, small_prior):
    """N x iterations x 2 forwards and 1 backward x g T, beside 4 outputs without gradients and the memory's 2 calls."""
    asked, learner = options(digits_tree, tmp_path, small_prior), method(**KEPT)
    count = rows(planned(asked, learner))
    assert count["denoise_back"] == 6 * 3 * 2 * 2
    packs = 2
    assert count["denoise"] == 2 * count["denoise_back"] + (4 + 2) * 6 * 2 * 2 + packs * 3 * 2


@pytest.mark.parametrize("changes", [{}, {"student_batch": 4, "graph": "two"}], ids=["all", "batches"])
def test_trajectories(digits_tree, tmp_path, small_prior, small_experts, changes):
    asked, learner = options(digits_tree, tmp_path, small_prior), method(experts=small_experts, **(KEPT | changes))
    count, real = rows(planned(asked, learner)), done(asked, learner)
    same(count, real)
    # Of six images in batches of four, the second step sees two.
    assert (count["student"], count["student_held"]) == tuple(matches * (6 if changes else 12) for matches in (3, 4))


def test_an_autoencoder_is_computed_again(digits_tree, tmp_path):
    prior = str(tmp_path / "prior")
    schedule = {"num_train_timesteps": 100, "clip_sample": False}
    autoencoder = tiny_autoencoder(widths=(8, 8))
    write_pipeline(prior, tiny_dit(), schedule, autoencoder=autoencoder, classes=("0", "1", "2"), facts={})
    asked, learner = options(digits_tree, tmp_path / "run", prior), method(decode_chunk=3, **KEPT)
    found = planned(asked, learner)
    count, real = rows(found), done(asked, learner)
    same(count, real)
    assert count["paint"] == 6 * (2 * 3 + 4 + 2) + 2 * 3 and count["read 16 px"] == 48
    assert calls(found, "paint_back") == 3 * (2 + 1)


def test_steps_that_are_kept(digits_tree, tmp_path, small_prior):
    job = open_job(options(digits_tree, tmp_path, small_prior))
    assert kept_steps(method(keep_steps=9), job, None) == 2 and kept_steps(method(), job, None) == 0
    assert kept_steps(method(), job, "cpu") == 2 and kept_steps(method(**PIXELS), job, "cpu") == 0


def test_a_refusal_is_the_same(digits_tree, tmp_path, small_prior):
    with pytest.raises(UserError, match="--ipc 99 needs 99 source images per class"):
        planned(options(digits_tree, tmp_path, small_prior, ipc=99), method())
    assert SIZE == 8
