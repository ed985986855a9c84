"""The executor without Ray: every unit is done or reported, in order of cost, and shards are scored in their order."""

import pytest
from toy_units import Toy, toys

from raydd.errors import Unfinished
from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources

LOCAL = Resources(executor="local")


def run(units, tmp_path, **kwargs):
    run_units(units, LOCAL, "toys", storage=str(tmp_path / "state"), **kwargs)


def test_all_are_done_and_what_is_done_is_left_alone(tmp_path, capsys):
    units = toys(tmp_path, a="ok", b="talk", c="ok")
    units[0].file.write_text("from before")
    run(units, tmp_path)
    assert [unit.tries for unit in units] == [0, 1, 1]
    assert units[0].file.read_text() == "from before"
    out = capsys.readouterr().out
    assert "b talks" in out
    assert "toys: 2/2" in out
    run(units, tmp_path)
    assert capsys.readouterr().out == ""


def test_the_longest_comes_first_and_equals_by_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(Toy, "run", lambda unit, context: (order.append(unit.name), unit.file.write_text(""))[0])
    costs = {"b": 1.0, "a": 1.0, "c": 5.0}
    run([Toy(name, str(tmp_path), cost=cost) for name, cost in costs.items()], tmp_path)
    assert order == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("behavior", "reason"), [("bug", "ZeroDivisionError: a bug in two lines"), ("user", "this is wrong: do that")]
)
def test_a_unit_that_raises_is_reported_after_the_others_finished(tmp_path, behavior, reason):
    units, events = toys(tmp_path, a="ok", bad=behavior, c="ok"), []
    with pytest.raises(Unfinished) as caught:
        run(units, tmp_path, on_event=lambda unit, event, facts: events.append((unit.name, event, facts)))
    assert f"toys 'bad' failed: {reason};" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [unit.is_done() for unit in units] == [True, False, True]
    assert events == [("bad", "unit_failed", {"reason": reason})]


def test_a_unit_that_leaves_no_files_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "run", lambda unit, context: None)
    with pytest.raises(Unfinished, match="'a' failed"):
        run(toys(tmp_path, a="ok"), tmp_path)
