"""Noise optimization of whole classes of Gaussian fields: spread, losses, independence, and small numbers of images."""

import dataclasses

import pytest
import torch
from toy_prior import GaussianPrior

from raydd.distill.dsco.config import DscoConfig, released, sgd
from raydd.distill.dsco.loop import State, Task
from raydd.distill.dsco.nopt import feature_nets, synthesize, targets_at, thinned
from raydd.distill.dsco.objective import Matching, norm_gap
from raydd.distill.dsco.optimize import minimize
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.step import posterior

SMALL = GaussianPrior((1, 4, 4))
QUICK = DscoConfig(steps=5, iterations=3, rounds=2)


def make(prior=SMALL, config=QUICK, ipc=3, reals=20, class_name="cat", label=0, start_state=None, on_step=None, **more):
    images = prior.reals(label or 0, reals) if isinstance(reals, int) else reals
    task = Task(class_name, label, ipc, **({"seed": 0} | more))
    return synthesize(prior, [images], [task], config, start_state=start_state, on_step=on_step)


def spread(latents: torch.Tensor) -> float:
    return float(latents.var(0, correction=0).mean())


def step_problem(shape, i: int, config: DscoConfig) -> tuple[Matching, torch.Tensor]:
    """Ten samples at level i of 50 that are to match 20 images of another class, and their drawn noise."""
    prior, task = GaussianPrior(shape), Task("cat", 0, 10, seed=0)
    schedule, nets = prior.schedule(50), feature_nets(prior, config, 0, "cat")
    alpha, sigma = schedule.level(i)
    x = alpha * prior.reals(1, 10) + sigma * prior.draw(10, torch_rng("x"))
    mean, std = posterior(prior.denoise(x, schedule, i, torch.zeros(10, dtype=torch.long)), schedule, i)
    targets = targets_at(nets, prior.reals(0, 20), schedule, i, task, config)
    return Matching(nets, targets, mean, std, config), prior.draw(10, torch_rng("noise"))


@pytest.mark.parametrize(("flow", "steps"), [(False, 50), (True, 25)], ids=["vp", "flow"])
def test_the_spread_that_guidance_narrows_is_repaired(flow, steps):
    prior = GaussianPrior(flow=flow)
    config = DscoConfig(steps=steps, iterations=10, rounds=2)
    plain = make(prior, dataclasses.replace(config, iterations=0), ipc=10, reals=2)
    found = make(prior, config, ipc=10, reals=40)
    assert spread(plain.latents) <= 0.45
    assert spread(found.latents) >= 0.75
    log = [facts for facts in found.logs[0] if "after" in facts]
    assert sum(facts["after"] for facts in log) < 0.75 * sum(facts["before"] for facts in log)


@pytest.mark.parametrize(("i", "ratio"), [(45, 1 / 3), (25, 1 / 3), (5, 0.6)])
def test_a_dozen_iterations_do_what_the_published_200_do(i, ratio):
    """Latents of the published size; the bounds are those of 200 iterations of SGD."""
    matching, noise = step_problem((4, 32, 32), i, DscoConfig(iterations=12, rounds=2))
    assert matching.loss(minimize(matching, noise, matching.config)[0]) < ratio * matching.loss(noise)


def test_the_published_optimizer_lowers_the_loss_and_keeps_the_norm():
    matching, noise = step_problem((1, 8, 8), 25, dataclasses.replace(sgd(), iterations=100))
    found, _ = minimize(matching, noise, matching.config)
    assert matching.loss(found) < 0.65 * matching.loss(noise)
    assert norm_gap(found).abs().mean() <= 0.35


def test_going_on_from_any_step_gives_the_same_bits():
    states: list[State] = []
    whole = make(on_step=states.append)
    assert [state.next_i for state in states] == [3, 2, 1, 0, -1]
    for state in states:
        assert torch.equal(make(start_state=state).latents, whole.latents)


def test_same_seed_same_bits_other_seed_chunk_or_name_other_images():
    base = make().latents
    assert torch.equal(make().latents, base)
    others = [make(seed=1), make(chunk=1), make(class_name="dog")]
    assert not any(torch.equal(other.latents, base) for other in others)


class Blind(GaussianPrior):
    """Gives NaN for the class "class1"."""

    def denoise(self, x, schedule, i, labels, guidance=1.0):
        found = super().denoise(x, schedule, i, labels, guidance)
        bad = torch.where(labels == 1, torch.nan, 1.0).view(-1, 1, 1, 1).to(found.clean.dtype)
        return dataclasses.replace(found, clean=found.clean * bad)


@pytest.mark.parametrize("change", [{}, {"start": "real"}, {"bins": "topup"}, {"optimizer": "adam"}], ids=str)
def test_a_pack_makes_what_its_classes_make_alone(change):
    """The same up to rounding, in any batches of the denoiser; each class has its own log."""
    prior = GaussianPrior((1, 4, 4), num_classes=3, dtype=torch.float64)
    config = dataclasses.replace(QUICK, feature_precision="fp64", pack=3, **change)
    tasks = [Task(f"class{n}", n, 2, seed=0, batch=4) for n in range(3)]
    reals = [prior.reals(n, 12 + n) for n in range(3)]
    found = synthesize(prior, reals, tasks, config)
    for n, task in enumerate(tasks):
        alone = synthesize(prior, [reals[n]], [task], config)
        assert (found.latents[2 * n : 2 * n + 2] - alone.latents).abs().max() < 1e-9
        assert found.logs[n][0]["after"] == pytest.approx(alone.logs[0][0]["after"], rel=1e-9)


def test_a_pack_goes_on_with_the_same_bits():
    states: list[State] = []
    tasks = [Task(f"class{n}", n, 2, seed=0) for n in range(2)]
    reals = [SMALL.reals(n, 10) for n in range(2)]
    whole = synthesize(SMALL, reals, tasks, QUICK, on_step=states.append)
    found = synthesize(SMALL, reals, tasks, QUICK, start_state=states[1])
    assert torch.equal(found.latents, whole.latents) and [len(log) for log in found.logs] == [5, 5]


def test_a_class_that_is_not_wanted_may_break_down():
    prior, reals = Blind((1, 4, 4)), [SMALL.reals(n, 10) for n in range(2)]
    tasks = [Task(f"class{n}", n, 2, seed=0) for n in range(2)]
    with pytest.raises(FloatingPointError, match="'class1', step 4"):
        synthesize(prior, reals, tasks, QUICK)
    tasks[1] = dataclasses.replace(tasks[1], wanted=False)
    found = synthesize(prior, reals, tasks, QUICK).latents
    torch.testing.assert_close(found[:2], synthesize(SMALL, reals, tasks, QUICK).latents[:2])
    assert found[2:].isnan().all()


def test_batches_of_the_denoiser_do_not_matter():
    prior = GaussianPrior((1, 4, 4), dtype=torch.float64)
    config = dataclasses.replace(QUICK, feature_precision="fp64", iterations=20)
    one, many = (make(prior, config, batch=batch).latents for batch in (1, 256))
    assert (one - many).abs().max() < 1e-10


@pytest.mark.parametrize(("ipc", "reals"), [(1, 20), (5, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize(
    "config", [QUICK, dataclasses.replace(released(), steps=4, iterations=4)], ids=["ours", "theirs"]
)
def test_few_images(ipc, reals, config):
    found = make(config=config, ipc=ipc, reals=reals)
    assert found.latents.shape == (ipc, 1, 4, 4) and torch.isfinite(found.latents).all()


def test_one_image_is_pulled_to_the_mean_features():
    found = make(config=dataclasses.replace(QUICK, iterations=30), ipc=1)
    assert sum(f["after"] for f in found.logs[0][:-1]) < sum(f["before"] for f in found.logs[0][:-1])


@pytest.mark.parametrize(
    "change",
    [
        {"extractor": "per-class"},
        {"num_extractors": 2},
        {"start": "gaussian"},
        {"start": "stratified"},
        {"start": "real"},
        {"target_level": "before"},
        {"strata": "jittered"},
        {"eta": 0.7},
        {"feature_precision": "bf16"},
    ],
    ids=str,
)
def test_switches_change_the_images(change):
    found = make(config=dataclasses.replace(QUICK, **change)).latents
    assert torch.isfinite(found).all() and not torch.equal(found, make().latents)


@pytest.mark.parametrize(
    ("reals", "ipc", "kept"), [(20, 10, (20, 5)), (20, 6, (20, 3)), (20, 2, (20, 1)), (50, 2, (20, 1)), (1, 1, (1, 5))]
)
def test_rows_per_image_drops_rounds_and_then_images(reals, ipc, kept):
    images = torch.arange(reals).float()
    found, rounds = thinned(images, ipc, DscoConfig(rows_per_image=10), ("k",))
    assert (len(found), rounds) == kept
    assert found.diff().gt(0).all()
    if len(found) < reals:
        assert not torch.equal(found, thinned(images, ipc, DscoConfig(rows_per_image=10), ("l",))[0])


def test_half_precision_latents_serve():
    images = SMALL.reals(0, 20).half()
    assert torch.equal(make(reals=images).latents, make(reals=images.float()).latents)


def test_an_unconditional_prior_starts_from_real_images():
    with pytest.raises(UserError, match="--start real"):
        make(label=None)
    found = make(label=None, config=dataclasses.replace(QUICK, start="real"))
    assert [facts["step"] for facts in found.logs[0]] == [2, 1, 0]


def test_refused():
    with pytest.raises(UserError, match="'cat' has no real"):
        make(reals=0)
    with pytest.raises(UserError, match=r"\(1, 8, 8\)"):
        make(reals=GaussianPrior().reals(0, 5))
    with pytest.raises(UserError, match="eta 0"):
        make(config=dataclasses.replace(QUICK, eta=0.0))
