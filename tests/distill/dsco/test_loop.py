"""The sampling loop: equal to diffusers' sampler without optimization, chunks, batches, and what it refuses."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from toy_prior import GaussianPrior

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.loop import State, Task, check_noise, chunks, descend
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.prior.base import Prediction, Schedule

SHAPE = (1, 4, 4)
TASK = Task("cat", 0, 3, seed=1)


class Watched:
    """An objective without a gradient."""

    def __call__(self, noise):
        return self.loss(noise), torch.zeros_like(noise)

    def loss(self, noise):
        return noise.sum()[None]


class Broken(GaussianPrior):
    """Gives NaN from step 2 on."""

    def denoise(self, x, schedule, i, labels, guidance=1.0):
        found = super().denoise(x, schedule, i, labels, guidance)
        return Prediction(found.clean * float("nan"), found.noise) if i <= 2 else found


def run(prior, config=DscoConfig(steps=50, iterations=0), task=TASK, state=None, on_step=None):  # noqa: B008
    schedule = prior.schedule(config.steps)
    x = prior.draw(task.count, torch_rng(*task.key("start")))
    state = state or State(len(schedule) - 1, x, [[]])
    return descend(prior, schedule, state, [task], config, lambda i, mean, std: Watched(), on_step)


@pytest.mark.parametrize(
    ("ipc", "limit", "sizes"),
    [
        (10, 256, [10]),
        (256, 256, [256]),
        (257, 256, [129, 128]),
        (7, 3, [3, 2, 2]),
        (1, 1, [1]),
        (600, 256, [200] * 3),
    ],
)
def test_chunks(ipc, limit, sizes):
    assert chunks(ipc, limit) == sizes


def test_without_iterations_it_is_the_ancestral_sampler(monkeypatch):
    prior = GaussianPrior(SHAPE, narrow=1.0)
    schedule = prior.schedule(50)
    oracle = DDPMScheduler(
        beta_start=1e-4, beta_end=2e-2, variance_type="fixed_small", clip_sample=False, timestep_spacing="linspace"
    )
    oracle.set_timesteps(50)
    assert oracle.timesteps.tolist() == schedule.timesteps.flip(0).tolist()
    states = []
    run(prior, on_step=states.append)
    x = prior.draw(3, torch_rng(*TASK.key("start")))
    for state in states:
        i = state.next_i + 1
        noise = prior.draw(3, torch_rng(*TASK.key("step", i)))
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, n=noise, **__: n)
        predicted = prior.denoise(x, schedule, i, torch.zeros(3, dtype=torch.long)).noise
        expected = oracle.step(predicted, int(schedule.timesteps[i]), x).prev_sample
        assert (state.x - expected).abs().max() < 2e-5 * max(1, float(expected.abs().max()))
        x = state.x
    assert len(states) == 50 and states[-1].next_i == -1


def test_batches_of_the_denoiser_do_not_matter():
    prior = GaussianPrior(SHAPE, dtype=torch.float64)
    one, many = (run(prior, task=dataclasses.replace(TASK, batch=batch)).latents for batch in (1, 256))
    assert (one - many).abs().max() < 1e-10


def test_going_on_gives_the_same_bits():
    prior, states = GaussianPrior(SHAPE), []
    whole = run(prior, on_step=states.append)
    for state in states[::10]:
        assert torch.equal(run(prior, state=state).latents, whole.latents)


def test_a_caller_can_stop_it():
    def stop(state: State) -> None:
        if state.next_i == 40:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(GaussianPrior(SHAPE), on_step=stop)


def test_nan_names_class_and_step():
    with pytest.raises(FloatingPointError, match=r"'cat', step 2"):
        run(Broken(SHAPE), DscoConfig(steps=6, iterations=0))


def test_no_noise_is_refused():
    schedule = GaussianPrior(SHAPE).schedule(10)
    check_noise(schedule, 1.0)
    with pytest.raises(UserError, match="eta 0"):
        check_noise(schedule, 0.0)
    still = Schedule(torch.arange(3), torch.ones(3), torch.full((3,), 0.5))
    with pytest.raises(UserError, match="nothing to optimize"):
        check_noise(still, 1.0)
