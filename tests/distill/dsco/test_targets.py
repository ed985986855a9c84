"""Quantile targets: bin means, their invariants for any numbers, brute-force integration, and keyed noise."""

import pytest
import torch

from raydd.distill.dsco.features import FeatureNet
from raydd.distill.dsco.targets import in_parts, make_targets, noised_features, quantiles, topped_up
from raydd.errors import UserError
from raydd.keyed import torch_rng

NET = FeatureNet((1, 4, 4), "targets", dtype=torch.float64)


def columns(size: int, features: int = 7) -> torch.Tensor:
    return torch.randn(features, size, generator=torch_rng("columns", size), dtype=torch.float64).sort(1).values


def reals(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch_rng("reals", count))


@pytest.mark.parametrize(("size", "count"), [(60, 10), (60, 1), (60, 60), (35, 7), (49, 49), (98, 49)])
def test_bin_means_where_count_divides(size, count):
    x = columns(size)
    torch.testing.assert_close(quantiles(x, count), x.view(7, count, -1).mean(2), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("size", "count"), [(60, 7), (3, 10), (1, 4), (50, 49), (11, 3), (5, 5), (13, 26)])
def test_any_numbers(size, count):
    x = columns(size)
    q = quantiles(x, count)
    # Repeating every value `count` times makes equal bins of size `size` without changing the distribution.
    torch.testing.assert_close(q, x.repeat_interleave(count, 1).view(7, count, size).mean(2), atol=1e-12, rtol=0)
    assert (q.diff(dim=1) > -1e-12).all()
    torch.testing.assert_close(q.mean(1), x.mean(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(quantiles(x, 2 * count).view(7, count, 2).mean(2), q, atol=1e-12, rtol=0)


def test_large_columns_keep_their_precision():
    x = (1000 + columns(6500)).float()
    expected = x.double().view(7, 100, 65).mean(2)
    torch.testing.assert_close(quantiles(x, 100), expected, atol=1e-6, rtol=0)


def test_targets_are_standardized():
    features = 3 + 0.01 * torch.randn(200, 9, generator=torch_rng("f"), dtype=torch.float64)
    found = make_targets(features, 20)
    z = (features - features.mean(0)) / features.std(0, correction=0)
    torch.testing.assert_close(found.quantiles[0], z.sort(0).values.view(20, 10, 9).mean(1), atol=1e-9, rtol=0)
    assert make_targets(features, 1).quantiles.abs().max() < 1e-6
    assert found.quantiles.square().mean() < make_targets(features, 100).quantiles.square().mean() < 1


def test_a_dead_feature_has_a_floor():
    features = torch.randn(50, 5, generator=torch_rng("dead"))
    features[:, 2] = 0.25
    found = make_targets(features, 5)
    assert found.std[0, 0, 2] == pytest.approx(1e-6 * float(found.std.median()), rel=1e-3)
    assert torch.isfinite(found.quantiles).all() and found.quantiles[..., 2].abs().max() < 1e-6


def test_features_of_the_noised_images():
    x = reals(130)
    plain = noised_features(NET, x, (0.5, 0.0), rounds=2, strata="systematic", key=("k",))
    assert plain.shape == (260, NET.features)
    torch.testing.assert_close(plain.mean(0), NET(0.5 * x).mean(0))
    noisy = [noised_features(NET, x, (0.5, 0.8), rounds=5, strata="jittered", key=key) for key in (("k",), ("l",))]
    assert not torch.equal(*noisy)
    assert torch.equal(
        noisy[0], noised_features(NET, x.half().float(), (0.5, 0.8), rounds=5, strata="jittered", key=("k",))
    ) == torch.equal(x, x.half().float())


def test_topping_up_makes_equal_bins():
    x = reals(9)
    rows = noised_features(NET, x, (0.5, 0.8), rounds=5, strata="jittered", key=("k",))
    found = topped_up(rows, NET, x, (0.5, 0.8), 10, ("k",))
    assert len(found) == 50 and torch.equal(found[:45], rows)
    assert len(topped_up(rows, NET, x, (0.5, 0.8), 9, ("k",))) == 45


def test_parts_do_not_matter():
    x = reals(300).double()
    torch.testing.assert_close(in_parts(NET, x), NET(x))


def test_one_row_is_refused():
    with pytest.raises(UserError, match=r"'cat'.*--rounds"):
        make_targets(torch.zeros(1, 4), 1, "cat")
