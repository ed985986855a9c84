"""Units on Ray Train: all are done whatever the number of workers, and every way of failing is reported, not fatal."""

import pytest
from toy_units import Steps, Toy, toys

from raydd.errors import Unfinished, UserError
from raydd.runtime import ray_units
from raydd.runtime.execute import run_units
from raydd.runtime.queue import MAX_ATTEMPTS
from raydd.runtime.ray_units import Slot
from raydd.runtime.work import Resources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def run(units, tmp_path, workers=2):
    events = []
    try:
        run_units(
            units,
            Resources(workers=workers),
            "toys",
            storage=str(tmp_path / "state"),
            on_event=lambda unit, event, facts: events.append((unit.name, event, facts)),
        )
    except Unfinished as error:
        return error, events
    return None, events


def test_units_are_done_lines_are_heard_and_what_is_done_is_left_alone(tmp_path, capfd):
    units = toys(tmp_path, a="ok", b="talk", c="ok", d="ok", e="ok")
    units[0].file.write_text("from before")
    assert run(units, tmp_path, workers=3) == (None, [])
    assert [unit.tries for unit in units] == [0, 1, 1, 1, 1]
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    # Progress besides; more than one line on a machine that is slow today.
    assert [line for line in lines if not line.startswith("toys: ")] == ["b talks"]
    assert lines[-1].startswith("toys: 4/4 in ")
    assert printed.err == ""
    # Nothing is left to do, so nothing is started.
    assert run(units, tmp_path) == (None, [])
    assert capfd.readouterr().out == ""


def test_units_that_raise_are_reported_after_the_others_finished(tmp_path):
    units = toys(tmp_path, a="bug", b="ok", c="user", d="ok")
    error, events = run(units, tmp_path)
    assert "failed: " in str(error)
    assert "(and 1 more)" in str(error)
    assert "\n" not in str(error)
    assert [unit.is_done() for unit in units] == [False, True, False, True]
    assert sorted((name, facts["reason"]) for name, _, facts in events) == [
        ("a", "ZeroDivisionError: a bug in two lines"),
        ("c", "this is wrong: do that"),
    ]
    if "'a'" in str(error):
        assert "toy_units.py" in str(error.__cause__)


def test_crashes_are_tried_again_and_given_up_while_the_others_finish(tmp_path):
    units = toys(tmp_path, poison="die", once="die once", c="ok", d="ok")
    error, events = run(units, tmp_path)
    assert f"toys 'poison' failed: its worker process died {MAX_ATTEMPTS} times;" in str(error)
    assert [unit.is_done() for unit in units] == [False, True, True, True]
    assert (units[0].tries, units[1].tries) == (MAX_ATTEMPTS, 2)
    charged = [
        (name, facts["attempts"]) for name, event, facts in events if event == "unit_retried" and facts["crashed"]
    ]
    assert sorted(charged) == [("once", 1), ("poison", 1), ("poison", 2)]


def test_a_worker_killed_within_a_unit_costs_the_step_it_was_in(tmp_path):
    """Two workers, one of which dies by SIGKILL in step 5 of 8: the unit goes on from step 5, to the same bytes."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    kills = {"a": (5,), "b": (), "c": ()}
    run_units([Steps(name, str(calm)) for name in kills], Resources(executor="local"), "steps", storage="")
    units = [Steps(name, str(rough), kills=steps) for name, steps in kills.items()]
    error, events = run(units, tmp_path)
    assert error is None
    assert ("a", "unit_retried", {"crashed": True, "attempts": 1}) in events
    computed = {unit.name: unit.computed() for unit in units}
    assert computed["a"] == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    # The restart of the group cuts the neighbor short as well; it too goes on from its last save.
    recomputed = sum(len(steps) - len(set(steps)) for steps in computed.values())
    assert recomputed <= 2
    for name in kills:
        assert (rough / f"{name}.bin").read_bytes() == (calm / f"{name}.bin").read_bytes()
    assert not list((rough / "state").glob("*.safetensors"))


def test_any_number_of_losses_is_outlived_by_units_that_get_on(tmp_path, monkeypatch):
    """As on a pool that loses machines often: more failures than are forgiven, each a step further than the last."""
    monkeypatch.setattr(ray_units, "MAX_FAILURES", 0)
    unit = Steps("a", str(tmp_path), steps=4, kills=(1, 3))
    error, events = run([unit], tmp_path, workers=1)
    assert error is None and unit.computed() == [0, 1, 1, 2, 3, 3]
    assert [event for _, event, _ in events] == ["unit_retried"] * 2


def test_a_loss_restarts_its_own_group_only(tmp_path, monkeypatch):
    """Two groups of one worker on one queue; one dies once, and the other is not disturbed."""
    monkeypatch.setattr(ray_units, "GROUP_WORKERS", 1)
    units = [Toy("once", str(tmp_path), "die once", cost=2.0), Toy("calm", str(tmp_path), cost=2.0, seconds=15.0)]
    error, events = run([*units, *toys(tmp_path, a="ok", b="ok")], tmp_path)
    assert error is None and [unit.tries for unit in units] == [2, 1]
    assert events == [("once", "unit_retried", {"crashed": True, "attempts": 1})]


def test_workers_are_dealt_to_groups_evenly():
    for workers, groups in ((130, 3), (64, 1), (5, 2)):
        shares = [Slot(number, groups).share(workers) for number in range(groups)]
        assert sum(shares) == workers and max(shares) - min(shares) <= 1
    assert Slot(2, 3).share(1) == 1


def test_losses_that_lead_nowhere_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_units, "MAX_FAILURES", 0)
    error, _ = run(toys(tmp_path, a="die"), tmp_path, workers=1)
    assert "toys 'a' failed: the workers failed, and no unit got on: " in str(error)


def test_events_that_cannot_be_recorded_are_said_and_end_nothing(tmp_path, capfd):
    def refuse(unit, event, facts):
        raise UserError("the store is down")

    units = toys(tmp_path, a="user", b="ok")
    with pytest.raises(Unfinished, match="toys 'a' failed: this is wrong: do that"):
        run_units(units, Resources(workers=1), "toys", storage=str(tmp_path / "state"), on_event=refuse)
    assert "not recorded: unit_failed of 'a': the store is down\n" in capfd.readouterr().out and units[1].is_done()


def test_a_package_that_workers_lack_is_reported_at_once(tmp_path, shared_ray):
    import toy_units

    shared_ray.cloudpickle.unregister_pickle_by_value(toy_units)
    units = toys(tmp_path, a="ok", b="ok")
    error, events = run(units, tmp_path)
    assert "No module named 'toy_units'" in str(error)
    assert "\n" not in str(error)
    assert sorted(name for name, _, _ in events) == ["a", "b"]
