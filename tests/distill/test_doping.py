"""Selection by exact key lists: order, ties, start, short classes, NaN; budgets by hand and against brute force."""

import math
import random

import pytest

from raydd.distill.doping import check_budget, equal_quotas, fraction_quotas, select
from raydd.errors import UserError

# Class 0: a b c d, class 1: e f g, class 2: h. From low to high: f=b(tie) e a g h c d.
TABLE = {"a": 0.2, "b": -0.5, "c": 0.8, "d": 0.9, "e": 0.1, "f": -0.5, "g": 0.3, "h": 0.4}
LABELS = {key: label for label, keys in enumerate(("abcd", "efg", "h")) for key in keys}


def chosen(quotas, table=TABLE, shuffle=0, **options):
    """Keys by class as strings; the listing's order must not matter, so it is shuffled."""
    keys = list(table)
    random.Random(shuffle).shuffle(keys)
    options = {"scope": "class", **options}
    selection = select(keys, [LABELS[k] for k in keys], [table[k] for k in keys], quotas, **options)
    assert all(
        tuple(table[key] for key in own) == scores for own, scores in zip(selection.keys, selection.scores, strict=True)
    )
    return ["".join(own) for own in selection.keys], selection


@pytest.mark.parametrize("shuffle", range(3))
def test_each_class_gives_its_lowest(shuffle):
    assert chosen([2, 2, 1], shuffle=shuffle)[0] == ["ba", "fe", "h"]
    assert chosen([1, 0, 0], shuffle=shuffle)[0] == ["b", "", ""]


@pytest.mark.parametrize("shuffle", range(3))
def test_the_global_list_goes_over_all_classes_and_breaks_ties_by_key(shuffle):
    assert chosen([1, 0, 0], shuffle=shuffle, scope="global")[0] == ["b", "", ""]
    assert chosen([1, 1, 0], shuffle=shuffle, scope="global")[0] == ["b", "f", ""]
    assert chosen([2, 2, 2], shuffle=shuffle, scope="global")[0] == ["ba", "feg", "h"]


def test_start_skips_per_class_and_as_many_times_the_classes_globally():
    assert chosen([2, 2, 0], start=1)[0] == ["ac", "eg", ""]
    # Three are skipped (b, f, e) and three are taken.
    assert chosen([1, 1, 1], start=1, scope="global")[0] == ["a", "g", "h"]


def test_the_other_end():
    assert chosen([2, 2, 0], order="highest")[0] == ["dc", "ge", ""]
    assert chosen([1, 1, 1], order="highest", scope="global")[0] == ["dc", "", "h"]
    # Ties by key on this end too: b before f.
    assert chosen([7, 0, 0], order="highest", scope="global")[0] == ["dcab", "ge", "h"]


def test_a_short_class_gives_all_and_the_rest_comes_from_the_global_list():
    keys, selection = chosen([1, 1, 3])
    # Class 2 has one image; two more are the lowest that are left: e (0.1), then a (0.2).
    assert keys == ["ba", "fe", "h"] and selection.filled == 2 and selection.counts == (2, 2, 1)
    # With a start, what was skipped (b, f, h) stays out: the one image that class 2 lacks is g (0.3), before c (0.8).
    keys, selection = chosen([1, 1, 1], start=1)
    assert keys == ["a", "eg", ""] and selection.filled == 1


def test_scores_that_are_not_finite_are_dropped_and_counted():
    broken = TABLE | {"b": math.nan, "e": math.inf, "h": -math.inf}
    keys, selection = chosen([2, 1, 0], table=broken)
    assert keys == ["ac", "f", ""] and selection.dropped == 3
    assert chosen([5, 0, 0], table=broken, scope="global")[0] == ["acd", "fg", ""]
    with pytest.raises(UserError, match=r"6 originals .* only 5 "):
        chosen([6, 0, 0], table=broken, scope="global")


def test_keys_that_the_set_holds_are_left_out():
    assert chosen([2, 1, 0], leave_out={"b", "f"})[0] == ["ac", "e", ""]


@pytest.mark.parametrize("scope", ["class", "global"])
def test_too_few_images_are_refused(scope):
    assert sum(chosen([8, 0, 0], scope=scope)[1].counts) == 8
    with pytest.raises(UserError, match="9 originals are to be added but only 8"):
        chosen([9, 0, 0], scope=scope)
    with pytest.raises(UserError, match=r"lower --start"):
        chosen([4, 2, 0], scope=scope, start=1)


def test_a_budget_beyond_the_source_is_refused_before_any_score():
    check_budget([2, 2], [3, 3], 1)
    with pytest.raises(UserError, match="5 originals are to be added but only 4"):
        check_budget([3, 2], [3, 3], 1)
    with pytest.raises(UserError, match="only 0"):
        check_budget([1, 0], [3, 3], 9)


def test_equal_quotas():
    assert equal_quotas(3, 2) == [3, 3]
    with pytest.raises(UserError, match="--per-class 0"):
        equal_quotas(0, 2)


def test_fractions_by_hand():
    assert fraction_quotas(0.5, [100, 60], [10, 10]) == [40, 20]
    # 0.25 * 10 - 1 = 1.5 each; the budget round(7.5) - 3 = 5 goes 2, 2, 1.
    assert fraction_quotas(0.25, [10, 10, 10], [1, 1, 1]) == [2, 2, 1]
    # Class 1 needs none: 0.2 * 100 - 5 = 15 and 0.2 * 10 - 5 < 0; the budget is 22 - 10 = 12.
    assert fraction_quotas(0.2, [100, 10], [5, 5]) == [12, 0]
    # Published: 100 + 500 per class of ImageWoof are 48.2 % of its 12,454 originals.
    assert sum(fraction_quotas(0.482, [1245] * 6 + [1246] * 4, [100] * 10)) == 6003 - 1000
    # Decimal, not binary: 0.29 * 50 is 14.5, rounded up.
    assert fraction_quotas(0.29, [50], [0]) == [15]
    assert fraction_quotas(0.1, [50, 50], [5, 5]) == [0, 0]
    assert fraction_quotas(1.0, [7, 5], [0, 0]) == [7, 5]


def test_fractions_hold_their_budget_and_stay_next_to_the_shares():
    rng = random.Random(0)
    for _ in range(200):
        sources = [rng.randint(20, 400) for _ in range(rng.randint(2, 12))]
        have = [rng.randint(0, 15) for _ in sources]
        fraction = round(rng.uniform(0.05, 1), 3)
        budget = math.floor(fraction * sum(sources) + 0.5) - sum(have)
        if budget < 0:
            with pytest.raises(UserError, match="--fraction"):
                fraction_quotas(fraction, sources, have)
            continue
        quotas = fraction_quotas(fraction, sources, have)
        assert sum(quotas) == budget and min(quotas) >= 0
        wanted = [fraction * n - k for n, k in zip(sources, have)]
        if min(wanted) >= 0:
            # The budget was rounded, by at most half an image over all classes, and each share by less than one.
            assert all(abs(q - w) < 1.5 for q, w in zip(quotas, wanted))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_fractions_outside_the_source_are_refused(fraction):
    with pytest.raises(UserError, match="must lie above 0"):
        fraction_quotas(fraction, [10], [1])


def test_a_fraction_below_the_set_is_refused_with_the_least_that_works():
    with pytest.raises(UserError, match=r"--fraction 0.1: 16 of 160 .* fewer than the 20 .* above 0.125"):
        fraction_quotas(0.1, [100, 60], [10, 10])
