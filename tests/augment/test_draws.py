"""Draws depend on seed, epoch, group and rank only: not on which rows are asked for, in which order, or together."""

import numpy as np

from raydd.augment.draws import Draws


def test_rows_do_not_depend_on_the_batch():
    draws = Draws(3, 20)
    everything = draws.uniform("crop", 5, 1, np.arange(20))
    rows = np.array([7, 2, 19])
    assert (Draws(3, 20).uniform("crop", 5, 1, rows) == everything[rows]).all()


def test_groups_epochs_and_seeds_differ():
    rows = np.arange(20)
    base = Draws(3, 20).uniform("crop", 1, 1, rows)
    others = [Draws(3, 20).uniform("flip", 1, 1, rows), Draws(3, 20).uniform("crop", 1, 2, rows)]
    others.append(Draws(4, 20).uniform("crop", 1, 1, rows))
    assert all(abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 0.9 for other in others)


def test_returning_to_an_epoch_repeats_it():
    draws = Draws(0, 9)
    first = draws.uniform("crop", 2, 0, np.arange(9))
    draws.uniform("crop", 2, 1, np.arange(9))
    assert (draws.uniform("crop", 2, 0, np.arange(9)) == first).all()


def test_order_is_a_permutation_that_changes():
    draws = Draws(0, 50)
    assert sorted(draws.order(0)) == list(range(50))
    assert (draws.order(0) != draws.order(1)).any()
