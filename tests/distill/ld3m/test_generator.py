"""The chain against diffusers' DDIM, against the specification written out, and against gains known in closed form;
gradients, denoiser calls and stored bytes do what the checkpoints promise (ld3m.md, section 11)."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from small_priors import ABAR, LDM, chain_by_hand, dit_prior, draw, formula_prior, gaussian_prior, kept_by, unet_prior

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import (
    PixelGenerator,
    PriorGenerator,
    level_pairs,
    settled_guidance,
    skip_weight,
    to_pixels,
)
from raydd.models.prior.base import Prediction

SHAPE = (2, 3, 2, 2)
LABELS = torch.tensor([2, 0])
# Gains dz_0 / dZ of priors of data N(0, s^2), by s, anchor and T = 5, 10, 20, 40, 100 (ld3m.md, section 1).
GAINS = {
    (1.0, "none"): (0.046, 0.025, 0.017, 0.014, 0.013),
    (1.0, "mean"): (0.058, 0.027, 0.018, 0.015, 0.013),
    (1.0, "x0"): (0.769, 0.970, 1.22, 1.34, 1.19),
    (0.1, "none"): (0.0040, 0.0020, 0.0014, 0.0013, 0.0012),
    (0.1, "mean"): (0.035, 0.010, 0.0050, 0.0036, 0.0035),
    (0.1, "x0"): (0.311, 0.248, 0.323, 0.562, 1.32),
}


def make(prior, keep_steps: int = 0, size: int | None = None, **switches) -> PriorGenerator:
    return PriorGenerator(prior, Ld3mConfig(**switches), size or prior.image_size, keep_steps)


def gain(generator: PriorGenerator) -> tuple[torch.Tensor, torch.Tensor]:
    """z_0 and its gradient summed, dz_0 / dZ where the chain works on each number by itself."""
    z = draw(*SHAPE).requires_grad_()
    out = generator.chain(z, None, draw(*SHAPE, key=1))
    return out.detach(), torch.autograd.grad(out.sum(), z)[0]


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_without_a_skip_the_chain_is_ddim_of_diffusers(steps, prediction, to_one):
    changes = {"prediction_type": prediction, "set_alpha_to_one": to_one}
    prior = formula_prior(lambda x, times: torch.tanh(x * (1 + times.view(-1, 1, 1, 1) / 500)), **changes)
    scheduler = DDIMScheduler(**LDM | changes, timestep_spacing="leading")
    scheduler.alphas_cumprod = ABAR
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64) if to_one else ABAR[0]
    scheduler.set_timesteps(steps)
    z, eps = draw(*SHAPE), draw(*SHAPE, key=1)
    expected = ABAR[scheduler.timesteps[0]] ** 0.5 * z + (1 - ABAR[scheduler.timesteps[0]]) ** 0.5 * eps
    for t in scheduler.timesteps:
        expected = scheduler.step(prior.net(expected, t.expand(2), None, False)[0], t, expected).prev_sample
    found = make(prior, steps=steps, anchor="none").chain(z, None, eps)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("make_prior", [unet_prior, dit_prior])
@pytest.mark.parametrize(
    ("anchor", "weights"), [("x0", None), ("x0", "t_over_T"), ("mean", None), ("mean", "to_zero"), ("none", None)]
)
def test_the_chain_is_the_specification(make_prior, anchor, weights):
    prior = make_prior()
    z, eps = (draw(2, *prior.latent_shape, key=key) for key in (0, 1))
    c = prior.conditions(LABELS).double() + 0.1 * draw(*prior.conditions(LABELS).shape, key=2)
    found = make(prior, steps=4, guidance=2.5, anchor=anchor, weights=weights).chain(z, c, eps)
    own = weights or ("t_over_T" if anchor == "mean" else "to_zero")
    expected = chain_by_hand(prior, z, c, eps, steps=4, guidance=2.5, anchor=anchor, weights=own)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(("spread", "anchor"), GAINS)
def test_gains_of_gaussian_priors(spread, anchor):
    """Autograd against the scalar recursion, and both against the published table."""
    for steps, known in zip((5, 10, 20, 40, 100), GAINS[spread, anchor]):
        _, found = gain(make(gaussian_prior(spread), steps=steps, anchor=anchor))
        times = [k * (1000 // steps) + 1 for k in reversed(range(steps))]
        abar = [float(ABAR[t]) for t in times] + [float(ABAR[0])]
        q = first = abar[0] ** 0.5
        for k, (a, after) in enumerate(itertools.pairwise(abar)):
            j = a**0.5 * spread**2 / (a * spread**2 + 1 - a)
            w = (steps - 1 - k) / (steps - 1) if anchor == "x0" else 0.0
            v = (steps - k) / steps if anchor == "mean" else 0.0
            e = (q - a**0.5 * j * q) / (1 - a) ** 0.5
            q = (1 - v) * (after**0.5 * ((1 - w) * j * q + w) + (1 - after) ** 0.5 * e) + v * first
        assert (found - q).abs().max() <= 1e-10 * q
        assert float(f"{q:.{1 if abs(known) < 0.1 else 2}e}") == pytest.approx(known, rel=0.011)


@pytest.mark.parametrize("anchor", ["none", "x0"])
@pytest.mark.parametrize("to_one", [True, False])
def test_a_constant_noise_prediction_passes_the_latent_on(anchor, to_one):
    """dz_0 / dZ is the identity, up to the root of the final abar."""
    constant = draw(1, *SHAPE[1:], key=5)
    prior = formula_prior(lambda x, times: constant.expand_as(x), set_alpha_to_one=to_one)
    for steps in (1, 2, 10):
        _, found = gain(make(prior, steps=steps, anchor=anchor))
        torch.testing.assert_close(found, torch.full_like(found, 1.0 if to_one else float(ABAR[0] ** 0.5)))


def test_the_skip_keeps_the_gradient_where_the_chain_starves_it():
    """Data of two Gaussians, so that the denoiser is not linear: without the skip the gradient falls with T."""

    def call(x, times):
        a, s2 = ABAR[times].view(-1, 1, 1, 1), 0.3**2
        spread = a * s2 + 1 - a
        sign = torch.tanh(a.sqrt() * x / spread)
        return sign + a.sqrt() * s2 / spread * (x - a.sqrt() * sign)

    prior, norms = formula_prior(call, size=4, prediction_type="sample"), {}
    z, eps, target = (draw(8, 3, 4, 4, key=key) for key in range(3))
    for anchor, steps in itertools.product(("none", "x0"), (5, 10, 20, 40)):
        learned = z.clone().requires_grad_()
        (make(prior, steps=steps, anchor=anchor).chain(learned, None, eps) - target).square().sum().backward()
        norms.setdefault(anchor, []).append(float(learned.grad.norm()))
    assert all(a > b for a, b in itertools.pairwise(norms["none"])) and norms["none"][0] > 2 * norms["none"][-1]
    assert max(norms["x0"]) < 3 * min(norms["x0"]) and min(norms["x0"]) > 10 * norms["none"][0]


def test_a_first_prediction_of_full_weight_is_left_out():
    """It may not be finite: then neither images nor gradients see it."""
    prior = gaussian_prior(1.0)
    generator = make(prior, steps=3)
    expected, denoise = gain(generator), prior.denoise

    def broken(x, schedule, i, *args, **options):
        out = denoise(x, schedule, i, *args, **options)
        return Prediction(torch.full_like(x, torch.nan) if i == 2 else out.clean, out.noise)

    prior.denoise = broken
    for a, b in zip(gain(generator), expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make_prior", [unet_prior, dit_prior])
def test_checkpoints_change_no_bit(make_prior):
    prior = make_prior(dtype=torch.float32)
    results = []
    for keep, decode_chunk in ((0, None), (1, None), (3, None), (3, 3)):
        z, eps = (draw(3, *prior.latent_shape, key=key).float() for key in (0, 1))
        c = prior.conditions(torch.tensor([0, 1, 2]))
        z.requires_grad_(), c.requires_grad_()
        pixels = make(prior, keep, steps=3, decode_chunk=decode_chunk).pixels(z, c, eps)
        pixels.square().sum().backward()
        results.append((pixels.detach(), z.grad, c.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    assert results[0][1].any() and results[0][2].any()


def test_the_decoder_works_in_parts():
    prior, sizes = dit_prior(), []
    prior.paint, paint = lambda part: sizes.append(len(part)) or paint(part), prior.paint
    latents = draw(5, *prior.latent_shape)
    found = make(prior, decode_chunk=2).decode(latents)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found, paint(latents))


def stored(generator: PriorGenerator) -> int:
    prior = generator.prior
    z, c = draw(2, *prior.latent_shape).float().requires_grad_(), prior.conditions(LABELS).requires_grad_()
    return kept_by(lambda: generator.chain(z, c, draw(*z.shape, key=1).float()), prior.net)


def test_the_decoder_keeps_its_latents_only():
    prior = dit_prior(dtype=torch.float32)
    latents = draw(2, *prior.latent_shape).float().requires_grad_()
    found, plain = (kept_by(lambda d=d: d(latents), prior.space.net) for d in (make(prior).decode, prior.paint))
    assert found == latents.nbytes < plain / 10


@pytest.mark.parametrize(("make_prior", "anchor"), [(unet_prior, "x0"), (dit_prior, "x0"), (dit_prior, "mean")])
def test_memory_grows_by_a_latent_per_step(make_prior, anchor):
    prior = make_prior(dtype=torch.float32)
    latents = 2 * 4 * torch.Size(prior.latent_shape).numel()
    found = [stored(make(prior, steps=steps, anchor=anchor)) for steps in (5, 10, 20, 40)]
    assert [b - a for a, b in itertools.pairwise(found)] == [5 * latents, 10 * latents, 20 * latents]
    # Kept activations are what makes it grow otherwise.
    assert stored(make(prior, 10, steps=10, anchor=anchor)) > 10 * found[1]


def test_calls_of_the_denoiser():
    """Every step once, and once more in the backward pass unless it is among the last ones, which are kept."""
    prior = unet_prior()
    levels, forward = [], prior.net.forward
    prior.net.forward = lambda x, times, **k: levels.append(int(times[0])) or forward(x, times, **k)
    z, eps, c = draw(2, 3, 8, 8).requires_grad_(), draw(2, 3, 8, 8, key=1), prior.conditions(LABELS)
    out = make(prior, 2, steps=5).chain(z, c, eps)
    assert levels == [801, 601, 401, 201, 1]
    out.sum().backward()
    assert levels[5:] == [401, 601, 801]
    with torch.no_grad():
        make(prior, steps=5).chain(z, c, eps)
    assert len(levels) == 13


def test_anchors_are_at_the_nearest_codes():
    """With w = 1 on the first of two steps, its clean latent is the quantized one."""
    prior, seen = dit_prior("VQModel"), []
    generator, denoise = make(prior, 2, steps=2), prior.denoise

    def spy(x, schedule, i, *args, **options):
        out = denoise(x, schedule, i, *args, **options)
        seen.append((x, out))
        return out

    prior.denoise = spy
    z, eps, c = draw(1, *prior.latent_shape), draw(1, *prior.latent_shape, key=1), prior.conditions(LABELS[:1])
    generator.chain(z, c, eps)
    codes = prior.space.quantize(z)
    assert (codes - z).abs().max() > 0.01
    alpha, sigma = generator.schedule.level(0)
    torch.testing.assert_close(seen[1][0], alpha * codes + sigma * seen[0][1].noise)


@pytest.mark.parametrize("autoencoder", ["AutoencoderKL", "VQModel"])
def test_no_steps_are_the_autoencoder_alone(autoencoder):
    prior = dit_prior(autoencoder)
    generator, z = make(prior, steps=0), draw(2, *prior.latent_shape).requires_grad_()
    assert generator.conditions(LABELS) is None
    found = generator.pixels(z, None, draw(*z.shape, key=1))
    raw = (z / prior.space.scale + prior.space.shift).detach()
    expected = prior.space.net.decode(raw).sample
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1))
    assert torch.autograd.grad(found.sum(), z)[0].any()


def test_a_clip_of_the_scheduler_is_not_followed():
    """It would take the gradient of what is clipped."""
    (a, slope), (b, free) = (
        gain(make(formula_prior(lambda x, times: -x, clip_sample=clip), steps=2, anchor="none"))
        for clip in (True, False)
    )
    assert torch.equal(a, b) and torch.equal(slope, free) and b.abs().max() > 1


def test_one_step_has_no_skip():
    prior = unet_prior()
    z, eps, c = draw(2, 3, 8, 8), draw(2, 3, 8, 8, key=1), prior.conditions(LABELS)
    a, b = (make(prior, steps=1, anchor=anchor).chain(z, c, eps) for anchor in ("x0", "none"))
    assert torch.equal(a, b)


def test_pixels_are_shrunk_to_the_matcher_and_stay_pixels():
    prior = dit_prior()
    generator, whole = make(prior, size=8, steps=2), make(prior, steps=2)
    z, eps, c = draw(2, 4, 8, 8), draw(2, 4, 8, 8, key=1), prior.conditions(LABELS)
    small, large = (g.pixels(3 * z, c, eps) for g in (generator, whole))
    assert small.shape == (2, 3, 8, 8) and large.shape == (2, 3, 16, 16)
    # A triangle of twice the width is antialiased bilinear at half the size.
    taps = torch.tensor([0.125, 0.375, 0.375, 0.125], dtype=torch.float64)
    inner = large[:, :, 1:-1, 1:-1].unfold(2, 4, 2).unfold(3, 4, 2) @ taps @ taps
    torch.testing.assert_close(small[:, :, 1:-1, 1:-1], inner)
    assert small.min() >= 0 and small.max() <= 1


def test_saturated_pixels_get_no_gradient():
    images = torch.tensor([-1.5, -0.5, 0.0, 1.5], requires_grad=True)
    pixels = to_pixels(images)
    pixels.sum().backward()
    assert pixels.tolist() == [0, 0.25, 0.5, 1] and images.grad.tolist() == [0, 0.5, 0.5, 0]


def test_conditions_and_latents_are_the_priors():
    prior = unet_prior(dtype=torch.float32)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = make(prior, steps=2)
    assert torch.equal(generator.conditions(LABELS), prior.conditions(LABELS))
    assert torch.equal(generator.encode(images), images.float() / 127.5 - 1)
    assert make(gaussian_prior(1.0), steps=2).conditions(LABELS) is None


def test_pixel_generator():
    generator = PixelGenerator(4)
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    z = generator.encode(images)
    assert generator.conditions(LABELS) is None and z.shape[1:] == generator.latent_shape
    pixels = generator.pixels(z, None, torch.full_like(z, torch.nan))
    assert torch.equal((pixels * 255).round().byte(), images)


def test_pixels_may_leave_the_range_while_they_are_learned():
    z = torch.tensor([-1.5, 0.0, 1.5], requires_grad=True)
    held, free = (PixelGenerator(1, clamp=clamp).pixels(z, None, z) for clamp in (True, False))
    assert held.tolist() == [0, 0.5, 1] and free.tolist() == [-0.25, 0.5, 1.25]
    free.sum().backward()
    assert z.grad.tolist() == [0.5] * 3


def test_guidance_follows_the_null_label():
    assert settled_guidance(unet_prior(), Ld3mConfig()) == 3
    assert settled_guidance(unet_prior(null=False), Ld3mConfig()) == 1
    assert settled_guidance(unet_prior(), Ld3mConfig(guidance=1.0)) == 1
    assert settled_guidance(unet_prior(), Ld3mConfig(guidance=0.0)) == 0


def test_weights_of_the_skip():
    assert [skip_weight(k, 5, "to_zero") for k in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [skip_weight(k, 4, "t_over_T") for k in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [skip_weight(0, 1, kind) for kind in ("to_zero", "t_over_T")] == [0, 1]


def test_levels_end_at_the_final_one():
    for to_one, last in ((True, 1.0), (False, float(ABAR[0]))):
        prior = formula_prior(lambda x, times: x, set_alpha_to_one=to_one)
        pairs = level_pairs(prior.schedule(4, "leading"))
        abar = [float(ABAR[t]) for t in (751, 501, 251, 1)] + [last]
        expected = [(a**0.5, (1 - a) ** 0.5) for a in abar]
        assert [before for before, _ in pairs] == [pytest.approx(level) for level in expected[:-1]]
        assert [after for _, after in pairs] == [pytest.approx(level) for level in expected[1:]]
