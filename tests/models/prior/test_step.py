"""A step equals diffusers' DDPM and DDIM steps for the same noise; sampling a known Gaussian gives that Gaussian."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prediction
from raydd.models.prior.schedule import read_table
from raydd.models.prior.step import posterior, sample

SHAPE = (2, 3, 4, 4)
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def table_of(scheduler):
    return read_table(dict(scheduler.config) | {"_class_name": type(scheduler).__name__}, pixels=True)


def randn(*key, shape=SHAPE):
    return torch.randn(shape, generator=torch_rng(*key))


def predicted(table, schedule, i, x, output, variance=None):
    return Prediction(*table.split(output, x, *schedule.level(i)), variance)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", ["fixed_small", "learned_range"])
def test_equals_the_ddpm_step(kind, prediction, monkeypatch):
    scheduler = DDPMScheduler(**LINEAR, variance_type=kind, timestep_spacing="linspace", prediction_type=prediction)
    scheduler.set_timesteps(50)
    table = table_of(scheduler)
    schedule = table.schedule(50)
    for i in (49, 25, 1, 0):
        x, output, raw, eps = (randn(part, i) for part in ("x", "out", "raw", "eps"))
        raw = raw.clamp(-1, 1) if kind == "learned_range" else None
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: eps)  # noqa: B023
        full = output if raw is None else torch.cat([output, raw], 1)
        expected = scheduler.step(full, int(schedule.timesteps[i]), x).prev_sample
        mean, std = posterior(predicted(table, schedule, i, x, output, raw), schedule, i)
        got = mean + std * eps if i else mean
        # At the noisy end epsilon is divided by an alpha of 0.006, and with it diffusers' fp32 rounding.
        assert (got - expected).abs().max() < 2e-5 * max(1, expected.abs().max().item() / 4), i


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_equals_the_ddim_step(eta):
    scheduler = DDIMScheduler(**LINEAR, timestep_spacing="leading", set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    table = table_of(scheduler)
    schedule = table.schedule(50, "leading")
    for i in (49, 25, 1, 0):
        x, output, eps = (randn(part, i) for part in ("x", "out", "eps"))
        expected = scheduler.step(output, int(schedule.timesteps[i]), x, eta=eta, variance_noise=eps).prev_sample
        mean, std = posterior(predicted(table, schedule, i, x, output), schedule, i, eta)
        assert (mean + std * eps - expected).abs().max() < 1e-5 * max(1, expected.abs().max().item() / 4), i


def test_flow_at_eta_0_equals_the_euler_step():
    scheduler = FlowMatchEulerDiscreteScheduler()
    table = table_of(scheduler)
    schedule = table.schedule(1000)
    scheduler.set_timesteps(sigmas=schedule.sigmas.flip(0).tolist())
    x, output = randn("x"), randn("v")
    expected = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    mean, std = posterior(predicted(table, schedule, 999, x, output), schedule, 999, eta=0.0)
    assert std == 0 and (mean - expected).abs().max() < 1e-6


def test_clipped_mean_equals_the_ddpm_step():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    table = table_of(scheduler)
    schedule = table.schedule(20)
    x, output = 3 * randn("x"), randn("out")
    expected = scheduler.step(output, int(schedule.timesteps[0]), x).prev_sample  # the last step adds no noise
    mean, std = posterior(predicted(table, schedule, 0, x, output), schedule, 0)
    assert std == 0 and torch.allclose(mean, expected, atol=1e-5)


def test_pure_noise_replaces_the_start_noise():
    schedule = table_of(FlowMatchEulerDiscreteScheduler()).schedule(10)
    _, std = posterior(Prediction(randn("c"), randn("n")), schedule, 9)
    assert std.item() == pytest.approx(schedule.level(8)[1])


class GaussianPrior:
    """The exact denoiser of data N(mean, spread^2), whatever the label."""

    latent_shape, device, mean, spread = (1, 40, 40), "cpu", 0.7, 0.4

    def __init__(self, scheduler, broken_at=None):
        self.table, self.broken_at, self.batches = table_of(scheduler), broken_at, []

    def schedule(self, steps):
        return self.table.schedule(steps)

    def denoise(self, x, schedule, i, labels, guidance=1.0):
        self.batches.append(len(x))
        alpha, sigma = schedule.level(i)
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        clean = self.mean + gain * (x - alpha * self.mean)
        if i == self.broken_at:
            clean = clean * math.nan
        return Prediction(clean, (x - alpha * clean) / sigma)

    def draw(self, count, generator):
        return torch.randn(count, *self.latent_shape, generator=generator)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scheduler", [DDPMScheduler(**LINEAR), FlowMatchEulerDiscreteScheduler()], ids=["vp", "flow"])
def test_samples_of_a_gaussian(scheduler, eta):
    prior = GaussianPrior(scheduler)
    x = sample(prior, None, [(0,)], steps=1000, eta=eta)
    assert x.mean().item() == pytest.approx(prior.mean, abs=0.03)
    assert x.std().item() == pytest.approx(prior.spread, rel=0.03)


def test_a_sample_depends_on_its_key_only():
    prior = GaussianPrior(DDPMScheduler(**LINEAR))
    keys = [("a", i) for i in range(5)]
    together = sample(prior, None, keys, steps=4, batch=5)
    apart = sample(prior, None, keys[::-1], steps=4, batch=2)
    assert torch.equal(together, apart.flip(0)) and set(prior.batches) == {5, 2, 1}
    assert not torch.equal(together, sample(prior, None, [("b", i) for i in range(5)], steps=4))


def test_nan_names_the_step():
    with pytest.raises(UserError, match="NaN or infinity at step 2"):
        sample(GaussianPrior(DDPMScheduler(**LINEAR), broken_at=2), None, [(0,)], steps=4)
