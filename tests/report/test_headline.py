"""The headline's place is chosen by coverage, not by accuracy, and the sentence claims no more than the interval."""

import dataclasses

import pytest

from raydd.evaluate.compare import compare
from raydd.evaluate.fairness import Paired
from raydd.evaluate.record import read_results
from raydd.report.headline import choose_headline, headline_note, headline_sentence, percent, points


@pytest.fixture(scope="module")
def results(runs):
    return [read_results(run) for run in runs]


def test_the_place_with_most_rows_whatever_the_accuracy(results):
    covered = [r for r in results if r.ipc == 1] + [r for r in results if r.ipc == 10 and r.method != "kmeans"]
    headline = choose_headline(compare(covered))
    assert headline.ipc == 1 and headline.block.protocol == "hard"
    assert headline.best.method == "infoutil" and headline.random.method == "random" and headline.full.is_full


def test_the_best_method_is_not_random_even_when_random_wins(results):
    pair = [r for r in results if r.method in ("kmeans", "random") and r.ipc == 1]
    blocks = compare([r if r.method == "kmeans" else boosted(r) for r in pair])
    headline = choose_headline(blocks)
    assert headline.block.rows[0].method == "random" and headline.best.method == "kmeans"
    assert "worse" in headline_note(headline)


def boosted(result):
    def better(seed):
        return dataclasses.replace(seed, last=seed.last + 0.1)

    evaluations = (dataclasses.replace(e, seeds=[better(s) for s in e.seeds]) for e in result.evaluations)
    return dataclasses.replace(result, evaluations=tuple(evaluations))


def test_random_alone_is_reported_without_a_difference(results):
    alone = [r for r in results if r.method == "random" and r.ipc == 1]
    headline = choose_headline(compare(alone))
    assert headline.best is headline.random
    assert "Difference" not in headline_note(headline) and "against" not in headline_sentence(alone, headline)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Paired(0.05, 0.02, 0.08, 3), "+5.0 points (95 % interval +2.0 to +8.0, 3 pairs): better"),
        (Paired(0.05, -0.02, 0.12, 3), "not shown to differ"),
        (Paired(-0.05, -0.08, -0.02, 3), ": worse"),
        (Paired(0.05, float("-inf"), float("inf"), 1), "too few for an interval"),
        (None, "no gain is claimed"),
    ],
)
def test_the_note_says_what_the_interval_allows(results, pair, words):
    headline = choose_headline(compare(results))
    headline = dataclasses.replace(headline, best=dataclasses.replace(headline.best, vs_random=pair))
    assert words in headline_note(headline)


def test_equal_steps_are_claimed_only_where_they_are(results):
    assert "500 optimizer steps for every row" in headline_note(choose_headline(compare(results)))
    longer = [r if r.method != "kmeans" else longer_trained(r) for r in results]
    assert "for every row" not in headline_note(choose_headline(compare(longer)))


def longer_trained(result):
    evaluations = (
        dataclasses.replace(e, seeds=[dataclasses.replace(s, steps=900) for s in e.seeds]) for e in result.evaluations
    )
    return dataclasses.replace(result, evaluations=tuple(evaluations))


def test_numbers():
    assert percent(0.8126) == "81.3 %" and points(0.0126) == "+1.3" and points(-0.1) == "-10.0"
