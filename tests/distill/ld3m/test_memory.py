"""Estimates against the bytes that autograd really keeps, and what follows from them."""

import pytest
import torch
from small_priors import dit_prior, draw, gaussian_prior, kept_by, unet_prior

from raydd.distill.ld3m import memory
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PriorGenerator
from raydd.distill.ld3m.memory import decoder_bytes, free_bytes, gib, settle_steps, step_bytes
from raydd.errors import UserError

LABELS = torch.tensor([0, 1, 2])
MIB = 1 << 20


def make(prior, keep: int = 0, **switches) -> PriorGenerator:
    return PriorGenerator(prior, Ld3mConfig(**{"steps": 4, "chunk": 3} | switches), prior.image_size, keep)


def chain(generator: PriorGenerator) -> torch.Tensor:
    prior = generator.prior
    learn_z, learn_c = generator.config.learns
    z, c = draw(3, *prior.latent_shape).float().requires_grad_(learn_z), prior.conditions(LABELS)
    return generator.chain(z, c.requires_grad_(learn_c), draw(*z.shape, key=1).float())


@pytest.mark.parametrize("make_prior", [unet_prior, dit_prior])
@pytest.mark.parametrize("switches", [{}, {"guidance": 1.0}, {"learn": "latent"}], ids=str)
def test_a_kept_step_costs_what_is_estimated(make_prior, switches):
    prior = make_prior(dtype=torch.float32)
    generators = [make(prior, keep, **switches) for keep in (0, 1, 3)]
    none, one, three = (kept_by(lambda g=g: chain(g), prior.net) for g in generators)
    estimate = step_bytes(generators[0], prior.conditions(LABELS[:1]), 3)
    # A step's input is kept either way.
    own = estimate - 3 * 4 * torch.Size(prior.latent_shape).numel()
    assert three - one == 2 * own and one - none == pytest.approx(own, rel=0.01)


def test_learned_conditions_cost_more_than_given_ones():
    prior = dit_prior(dtype=torch.float32)
    c = prior.conditions(LABELS[:1])
    both, latent = (step_bytes(make(prior, learn=learn), c, 1) for learn in ("both", "latent"))
    assert both > 1.02 * latent


@pytest.mark.parametrize("autoencoder", ["AutoencoderKL", "VQModel"])
def test_the_decoder_costs_what_is_estimated(autoencoder):
    prior = dit_prior(autoencoder, torch.float32)
    latents = draw(3, *prior.latent_shape).float().requires_grad_()
    real = kept_by(lambda: prior.paint(latents), prior.space.net)
    assert decoder_bytes(make(prior), 3) == pytest.approx(real, rel=0.02)
    assert decoder_bytes(make(unet_prior()), 3) == 0


class Plan:
    """`settle_steps` of a DiT with known bytes free, and the parts of its estimate."""

    def __init__(self, monkeypatch, count: int = 6, prior=None, **switches):
        self.prior, self.count, self.patch = prior or dit_prior(dtype=torch.float32), count, monkeypatch
        self.generator = make(self.prior, **switches)
        self.c = self.prior.conditions(LABELS[:1])
        chunk = min(self.generator.config.chunk, count)
        self.step = step_bytes(self.generator, self.c, chunk) if self.generator.config.steps else 0
        self.decoder = decoder_bytes(self.generator, min(self.generator.config.decode_chunk or chunk, chunk))

    def __call__(self, free: float | None) -> int:
        self.patch.setattr(memory, "free_bytes", lambda device: None if free is None else int(free))
        return settle_steps(self.generator, self.c, self.count)

    def images(self, waiting: int) -> int:
        """Bytes of latents (256), conditions (48) and pixels (768), four of each; and a latent per step that waits."""
        return 4 * (4 * self.count * (256 + 48 + 768) + waiting * 4 * 256)


def test_as_many_steps_as_a_quarter_of_the_memory_holds(monkeypatch):
    plan = Plan(monkeypatch)
    # Both chunks wait for the loss.
    for steps in range(5):
        enough = 4 * (plan.images(6) + plan.decoder + 2 * steps * plan.step)
        assert plan(enough + 4) == steps and (steps == 0 or plan(enough - 4) == steps - 1)
    assert plan(1 << 30) == 4


def test_the_second_pass_holds_one_chunk(monkeypatch):
    plan = Plan(monkeypatch, graph="two")
    enough = 4 * (plan.images(3) + plan.decoder + 2 * plan.step)
    assert plan(enough + 4) == 2 and plan(enough - 4) == 1


def test_a_cpu_is_shared(monkeypatch):
    plan = Plan(monkeypatch)
    monkeypatch.setattr(memory, "CPU_LIMIT", plan.images(6) + plan.decoder + 2 * plan.step)
    assert plan(1 << 40) == 1
    plan.generator.device = "cuda"
    monkeypatch.setattr(memory, "_kept", lambda generator, call, count: 1000 * count)
    assert plan(1 << 40) == 4


def test_what_is_given_or_unknown_or_needs_nothing(monkeypatch):
    assert [Plan(monkeypatch, keep_steps=given)(1 << 30) for given in (3, 0)] == [3, 0]
    assert Plan(monkeypatch)(None) == 0
    assert Plan(monkeypatch, steps=0, learn="latent")(1 << 30) == 0
    plan = Plan(monkeypatch)
    plan.c, plan.prior = None, gaussian_prior(1.0)
    plan.generator = make(plan.prior)
    assert plan(1 << 30) == 4


@pytest.mark.parametrize("keep_steps", [None, 4])
@pytest.mark.parametrize(
    ("switches", "count", "part", "remedy"),
    [
        ({"decode_chunk": 1}, 3, "step", "lower --chunk$"),
        ({"steps": 0, "learn": "latent"}, 3, "decoder", "lower --decode-chunk$"),
        ({"chunk": 1}, 300, "images", "lower --ipc, or use --graph two$"),
        ({"chunk": 1, "graph": "two"}, 300, "images", "lower --ipc$"),
    ],
    ids=str,
)
def test_what_does_not_fit_names_what_to_lower(monkeypatch, switches, count, part, remedy, keep_steps):
    plan = Plan(monkeypatch, count, **switches, keep_steps=keep_steps)
    with pytest.raises(UserError, match=remedy) as error:
        plan(2000)
    assert "\n" not in str(error.value) and "0.00 GiB are free" in str(error.value)
    chunk = min(count, plan.generator.config.chunk)
    waiting = chunk if plan.generator.config.graph == "two" else count
    images = 4 * (4 * count * (256 + 48 + 768) + waiting * plan.generator.config.steps * 256)
    needed = max(plan.step, plan.decoder) + images
    assert plan(needed) >= 0
    with pytest.raises(UserError, match=f"one step of {chunk} images"):
        plan(needed - 1)


def test_free_bytes_of_this_machine():
    free = free_bytes("cpu")
    assert free is None or 10 * MIB < free < 1 << 50


def test_unknown_memory(monkeypatch):
    def fail(name):
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "sysconf", fail)
    assert free_bytes("cpu") is None


def test_gib():
    assert gib(1.5 * 2**30) == "1.50 GiB"
