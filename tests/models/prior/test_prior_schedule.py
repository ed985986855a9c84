"""Tables and timesteps equal those of diffusers' schedulers; every parameterization gives the same (clean, noise)."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from raydd.errors import UserError
from raydd.models.prior.schedule import read_table, spaced

BETAS = [
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01, 0.02, 0.1, 0.5]},
    {"beta_schedule": "linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


def config(scheduler) -> dict:
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


@pytest.mark.parametrize("betas", BETAS, ids=lambda b: "-".join(b))
def test_tables_equal_diffusers(betas):
    scheduler = DDPMScheduler(**betas)
    table = read_table(config(scheduler), pixels=True)
    assert np.abs(table.alphas**2 - scheduler.alphas_cumprod.double().numpy()).max() < 2e-6
    assert np.abs(table.alphas**2 + table.sigmas**2 - 1).max() < 1e-12


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_timesteps_equal_diffusers(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    own = read_table(config(scheduler), pixels=False).schedule(steps, spacing)
    if steps == 1 and spacing == "linspace":
        assert own.timesteps.tolist() == [999]  # diffusers starts its only step from the cleanest level
    else:
        assert own.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()


def test_flow_levels_equal_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = read_table(config(scheduler), pixels=True)
    levels = table.schedule(1000)
    assert torch.allclose(levels.sigmas.flip(0).float(), scheduler.sigmas, atol=1e-6)
    assert torch.allclose(levels.timesteps.flip(0), scheduler.timesteps, atol=1e-3)
    assert torch.equal(levels.alphas, 1 - levels.sigmas) and levels.level(999) == (0.0, 1.0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_every_prediction_is_split(prediction):
    plain = FlowMatchEulerDiscreteScheduler() if prediction == "flow_prediction" else DDPMScheduler()
    changes = {} if prediction == "flow_prediction" else {"prediction_type": prediction}
    table = read_table(config(plain) | changes, pixels=False)
    schedule = table.schedule(5)
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = schedule.level(2)
    output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[prediction]
    got = table.split(output, alpha * clean + sigma * noise, alpha, sigma)
    assert torch.allclose(got[0], clean, atol=1e-5) and torch.allclose(got[1], noise, atol=1e-5)


@pytest.mark.parametrize("to_one", [True, False, None])
@pytest.mark.parametrize("betas", BETAS[:2], ids=lambda b: b["beta_schedule"])
def test_the_final_level_is_that_of_diffusers_ddim(betas, to_one):
    given = {} if to_one is None else {"set_alpha_to_one": to_one}
    scheduler = DDIMScheduler(**betas, **given)
    alpha, sigma = read_table(config(scheduler), pixels=False).schedule(7, "leading").final
    assert alpha**2 == pytest.approx(float(scheduler.final_alpha_cumprod), abs=1e-6)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert (alpha == 1) == (to_one is not False)
    # Levels are numbered as ever: below the cleanest is the clean image.
    assert read_table(config(scheduler), pixels=False).schedule(7, "leading").level(-1) == (1.0, 0.0)


def test_a_scheduler_that_names_no_final_level_ends_where_ddim_made_of_it_does():
    scheduler = DDPMScheduler()
    assert DDIMScheduler.from_config(scheduler.config).final_alpha_cumprod == 1
    assert read_table(config(scheduler), pixels=False).schedule(7).final == (1.0, 0.0)


def test_flow_ends_at_the_clean_image():
    assert read_table(config(FlowMatchEulerDiscreteScheduler()), pixels=True).schedule(5).final == (1.0, 0.0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_splitting_without_a_clip_keeps_gradients_and_precision(prediction):
    given = config(DDIMScheduler(clip_sample=True, prediction_type=prediction))
    table = read_table(given, pixels=True)
    alpha, sigma = table.schedule(5, "leading").level(3)
    x, output = (torch.linspace(-9, 9, 8, dtype=torch.float64) * scale for scale in (1, 0.5))
    clean, noise = table.split(output.requires_grad_(), x, alpha, sigma, clip=False)
    assert clean.dtype == noise.dtype == torch.float64
    torch.testing.assert_close(alpha * clean + sigma * noise, x, rtol=1e-12, atol=1e-12)
    assert clean.abs().max() > 1 and torch.autograd.grad(clean.sum() + noise.sum(), output)[0].all()
    clipped = table.split(output, x, alpha, sigma)[0]
    assert clipped.abs().max() == 1
    # Half precision of a network is widened, never the other way round.
    assert table.split(output.detach().half(), x.float(), alpha, sigma)[0].dtype == torch.float32


def test_clipping_is_for_pixels_and_keeps_the_sum():
    wide = config(DDPMScheduler(clip_sample=True, clip_sample_range=0.5))
    assert read_table(wide, pixels=False).clip is None
    table = read_table(wide, pixels=True)
    alpha, sigma = table.schedule(3).level(1)
    x = torch.linspace(-3, 3, 8)
    clean, noise = table.split(torch.zeros(8), x, alpha, sigma)
    assert clean.abs().max() == 0.5
    assert torch.allclose(alpha * clean + sigma * noise, x, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "beta_schedule": None}, "EDMEulerScheduler, which has no beta schedule"),
        ({"prediction_type": "score"}, "unknown prediction type 'score'"),
        ({"beta_schedule": "sigmoid"}, "unknown beta schedule 'sigmoid'"),
        ({"thresholding": True}, "thresholding"),
        ({"rescale_betas_zero_snr": True}, "pure noise"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        read_table(config(DDPMScheduler()) | changes, pixels=True)


def test_steps_out_of_range():
    table = read_table(config(DDPMScheduler(num_train_timesteps=10)), pixels=True)
    for steps in (0, 11):
        with pytest.raises(UserError, match="choose 1 to 10"):
            table.schedule(steps)
    assert spaced(10, 10, "linspace").tolist() == list(range(10))
