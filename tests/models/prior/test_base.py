"""Levels of a schedule, the clean one included."""

import torch

from raydd.models.prior.base import Schedule


def test_levels():
    schedule = Schedule(torch.tensor([0, 5]), torch.tensor([0.8, 0.0]).double(), torch.tensor([0.6, 1.0]).double())
    assert len(schedule) == 2 and schedule.start == 1.0
    assert schedule.level(1) == (0.0, 1.0) and schedule.level(-1) == (1.0, 0.0)
    assert abs(schedule.level(0)[0] - 0.8) < 1e-7
