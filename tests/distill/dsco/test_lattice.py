"""Stratified noise: the exact values of the lattice, one draw per stratum, and medoids."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from raydd.distill.dsco.lattice import copies, lattice, medoids, start_noise
from raydd.keyed import torch_rng

SHAPE = (2, 3, 3)
VARIANCES = {2: 0.455, 5: 0.767, 10: 0.880, 20: 0.939, 50: 0.975, 100: 0.987}


@pytest.mark.parametrize(("count", "variance"), VARIANCES.items())
def test_lattice_has_the_quantiles_in_every_coordinate(count, variance):
    noise = lattice(count, SHAPE, torch_rng("lattice", count)).flatten(1)
    expected = norm.ppf((np.arange(count) + 0.5) / count)
    assert np.abs(noise.sort(0).values.numpy() - expected[:, None]).max() < 1e-6
    assert float(noise.double().square().mean()) == pytest.approx(variance, abs=6e-4)
    assert noise.mean(0).abs().max() < 1e-6
    assert len({tuple(column) for column in noise.argsort(0).T.tolist()}) > 1


def test_lattice_of_one_is_zero_and_one_image_starts_from_noise():
    assert not lattice(1, SHAPE, torch_rng()).any()
    assert start_noise("lattice", 1, SHAPE, ("k",)).std() > 0.5


def strata_of(noise: torch.Tensor, rounds: int) -> torch.Tensor:
    return (torch.special.ndtr(noise.double()) * rounds).floor().long()


@pytest.mark.parametrize("strata", ["systematic", "jittered"])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_every_image_and_coordinate_has_one_draw_per_stratum(strata, rounds):
    found = strata_of(copies(50, rounds, SHAPE, torch_rng("copies"), strata), rounds).sort(0).values
    assert torch.equal(found, torch.arange(rounds).view(-1, 1, 1, 1, 1).expand_as(found))


@pytest.mark.parametrize("strata", ["systematic", "jittered"])
def test_each_round_is_standard_normal_and_independent_across_coordinates(strata):
    noise = copies(4000, 5, (1, 1, 2), torch_rng("normal"), strata).flatten(2)
    assert noise.mean(1).abs().max() < 0.07 and (noise.var(1) - 1).abs().max() < 0.1
    assert all(abs(float(torch.corrcoef(part.T)[0, 1])) < 0.07 for part in noise)


def test_starts():
    jittered = start_noise("stratified", 10, SHAPE, ("k",))
    assert torch.equal(strata_of(jittered, 10).sort(0).values, torch.arange(10).view(-1, 1, 1, 1).expand(10, *SHAPE))
    assert not torch.equal(jittered, start_noise("lattice", 10, SHAPE, ("k",)))
    scaled = start_noise("lattice", 10, SHAPE, ("k",), unit_variance=True)
    torch.testing.assert_close(scaled.var(0, correction=0), torch.ones(SHAPE))


def test_medoids_are_one_of_each_cluster():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = centers.repeat(5, 1) + 0.1 * torch.randn(15, 2, generator=torch_rng("rows"))
    assert sorted(row % 3 for row in medoids(rows.view(15, 1, 1, 2), 3, ("k",))) == [0, 1, 2]
    assert len(medoids(rows[:2].view(2, 1, 1, 2), 5, ("k",))) == 5
