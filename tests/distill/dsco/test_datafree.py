"""Source-free: templates standardize themselves, the terms of the loss by hand, and what synthesis changes."""

import dataclasses

import pytest
import torch
from toy_prior import GaussianPrior

from raydd.distill.dsco.config import DscoConfig
from raydd.distill.dsco.datafree import FreeMatching, nearest_cosines, synthesize_free, template_statistics
from raydd.distill.dsco.loop import Task
from raydd.keyed import torch_rng

PRIOR = GaussianPrior((1, 6, 6))
CONFIG = DscoConfig(access="free", steps=4, iterations=8, templates=12)


def templates(config=CONFIG, seed=0, **more):
    return template_statistics(PRIOR, Task("cat", 0, 4, seed), config, **more)


def make(config=CONFIG, ipc=4, **more):
    return synthesize_free(PRIOR, [templates(config)], [Task("cat", 0, ipc, seed=0)], config, **more)


def objective(config=CONFIG, ipc=4) -> tuple[FreeMatching, torch.Tensor]:
    mean, noise = (torch.randn(ipc, 1, 6, 6, generator=torch_rng(k), dtype=torch.float64) for k in "mn")
    return FreeMatching(
        None,
        mean.new_full((1, 36, 1), 0.2),
        mean.new_full((1, 36, 1), 1.5),
        mean,
        torch.tensor(0.5, dtype=torch.float64),
        config,
    ), noise


def test_statistics_are_those_of_the_templates():
    """Latents as features: the last noised level is drawn again here, and standardized to mean 0 and deviation 1."""
    config = dataclasses.replace(CONFIG, features="latent", templates=40, steps=2)
    found, schedule = templates(config), PRIOR.schedule(2)
    start = PRIOR.draw(40, torch_rng(0, "cat", "template", "start"))
    from raydd.models.prior.step import posterior

    mean, std = posterior(PRIOR.denoise(start, schedule, 1, torch.zeros(40, dtype=torch.long)), schedule, 1)
    x = mean + std * PRIOR.draw(40, torch_rng(0, "cat", "template", "step", 1))
    z = (x.flatten(1)[:, :, None] - found.mean[1]) / found.std[1]
    assert z.mean((0, 2)).abs().max() < 1e-5 and (z.std((0, 2), correction=0) - 1).abs().max() < 1e-5


def test_statistics_of_maps_have_a_row_per_step_and_do_not_depend_on_batches():
    one, many = templates(batch=5), templates(batch=64)
    assert one.mean.shape == one.std.shape == (4, 512, 1)
    torch.testing.assert_close(one.mean, many.mean, atol=1e-5, rtol=1e-4)
    assert not torch.equal(one.mean, templates(seed=1).mean)


def test_loss_by_hand():
    matching, noise = objective()
    z = ((matching.mean + 0.5 * noise).flatten(1) - 0.2) / 1.5
    mean, off = z.mean(0), z.std(0, correction=0) - 1
    gaps = (mean.abs() + mean**2 + off.abs() + off**2).sum()
    torch.testing.assert_close(matching.loss(noise), gaps[None] / 36)

    def total(noise):
        z = ((matching.mean + 0.5 * noise).flatten(1) - 0.2) / 1.5
        mean, off = z.mean(0), z.std(0, correction=0) - 1
        cosines = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2) - 9 * torch.eye(4)
        gaps = (mean.abs() + mean**2 + off.abs() + off**2).sum()
        return 10 * cosines.max(1).values.sum() + 10 * 32.8 / 36 * gaps

    way, h = torch.randn(noise.shape, generator=torch_rng("way"), dtype=torch.float64), 1e-6
    expected = (total(noise + h * way) - total(noise - h * way)) / (2 * h)
    assert float((matching(noise)[1] * way).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_nearest_cosines():
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    expected = torch.tensor([0.5**0.5, 0.5**0.5, 0.0])
    torch.testing.assert_close(nearest_cosines(torch.stack([z, z.flip(0)])), torch.stack([expected, expected.flip(0)]))
    assert nearest_cosines(z[None, :1]).tolist() == [[0.0]]


def test_synthesis_lowers_the_loss_and_the_largest_cosine():
    plain = make(dataclasses.replace(CONFIG, iterations=0))
    found = make(dataclasses.replace(CONFIG, iterations=30))
    steps = found.logs[0][:-1]
    assert sum(f["after"] for f in steps) < sum(f["before"] for f in steps)

    def largest(latents: torch.Tensor) -> float:
        return float(nearest_cosines((latents - PRIOR.means[0].float())[None]).max())

    assert largest(found.latents) < largest(plain.latents)


@pytest.mark.parametrize("change", [{}, {"features": "latent"}, {"optimizer": "sgd", "norm": "penalty"}], ids=str)
@pytest.mark.parametrize("ipc", [1, 3])
def test_any_count_runs_and_goes_on_bitwise(change, ipc):
    config, states = dataclasses.replace(CONFIG, **change), []
    whole = make(config, ipc, on_step=states.append)
    assert torch.isfinite(whole.latents).all()
    assert torch.equal(make(config, ipc, start_state=states[1]).latents, whole.latents)


def test_a_pack_makes_what_its_classes_make_alone():
    prior = GaussianPrior((1, 6, 6), dtype=torch.float64)
    config = dataclasses.replace(CONFIG, feature_precision="fp64", iterations=4)
    tasks = [Task(f"class{n}", n, 3, seed=0) for n in range(2)]
    found = [template_statistics(prior, task, config) for task in tasks]
    together = synthesize_free(prior, found, tasks, config)
    for n, task in enumerate(tasks):
        alone = synthesize_free(prior, [found[n]], [task], config)
        assert (together.latents[3 * n : 3 * n + 3] - alone.latents).abs().max() < 1e-9
