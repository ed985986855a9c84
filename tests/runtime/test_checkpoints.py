"""When a unit saves, what it finds after a loss, and what it tells: without Ray, and with a clock of ours."""

import torch

from raydd.runtime.checkpoints import SaveClock, open_work
from raydd.runtime.work import Context
from raydd.store import events
from raydd.store.run import Run


class World:
    """A clock, and a preemption notice, that tests set."""

    def __init__(self):
        self.time, self.left = 100.0, None

    def clock(self, **settings) -> SaveClock:
        return SaveClock(30.0, lambda: self.left, notice_s=3.0, now=lambda: self.time, **settings)

    def asked_at(self, clock: SaveClock, *times: float) -> list[float]:
        """Those of `times` at which it was time to save."""
        found = []
        for self.time in times:
            if clock.due():
                clock.saved()
                found.append(self.time)
        return found


def test_a_save_is_due_every_so_many_seconds_after_the_last_one():
    world = World()
    clock = world.clock()
    assert world.asked_at(clock, 100, 129.9, 130, 131, 159.9, 165, 190, 195) == [130, 165, 195]


def test_a_notice_is_answered_at_once_and_then_every_few_seconds():
    world = World()
    clock = world.clock()
    assert world.asked_at(clock, 101) == []
    world.left = 60.0
    assert world.asked_at(clock, 101.5, 102, 104.4, 104.5, 106, 108) == [101.5, 104.5, 108]


def test_a_save_that_is_due_stays_due_until_it_has_ended():
    world = World()
    clock = world.clock()
    world.time = 140
    assert clock.due() and clock.due()
    world.time = 150
    clock.saved()
    world.time = 179
    assert not clock.due()


def test_no_wait_saves_at_every_step():
    assert SaveClock(0.0).due() and SaveClock(0.0, lambda: 5.0).due()


def names(run: Run) -> list[str]:
    return [event["event"] for event in events.read(run)]


def test_a_unit_finds_its_state_again_and_the_events_tell(tmp_path):
    run, steps = Run(str(tmp_path / "run")), []
    work = open_work(run, "cat", "hash", Context("cpu", advanced=steps.append))
    assert work.device == "cpu" and work.load_state() is None
    assert not work.due()
    work.save_state({"x": torch.arange(3.0)}, 4, {"log": [1, 2]})
    work.save_state({"x": torch.arange(3.0) + 1}, 5)
    assert steps == [4, 5]
    again = open_work(run, "cat", "hash", Context())
    found = again.load_state()
    assert (found.step, found.facts, found.tensors["x"].tolist()) == (5, {}, [1.0, 2.0, 3.0])
    assert open_work(run, "cat", "other", Context()).load_state() is None
    assert open_work(run, "dog", "hash", Context()).load_state() is None
    again.delete_state()
    assert again.load_state() is None
    assert names(run) == ["unit_resumed", "state_refused"]


def test_a_notice_is_told_once(tmp_path):
    run, left = Run(str(tmp_path / "run")), [None, 90.0, 60.0, 30.0]
    work = open_work(run, "cat", "hash", Context(deadline=lambda: left[0]))
    asked = [work.due()]
    del left[0]
    asked += [work.due(), work.due()]
    assert asked == [False, True, False]
    assert [(event["event"], event["seconds_left"]) for event in events.read(run)] == [("unit_preempted", 90.0)]


def test_lines_carry_the_name_of_the_unit(tmp_path):
    lines = []
    open_work(Run(str(tmp_path)), "cat", "hash", Context(say=lines.append)).say("step 3 of 50")
    assert lines == ["cat: step 3 of 50"]
