"""Events add up to what is done, at work and failed: counted by hand, whatever the order in which units end."""

import pytest

from raydd.store import events
from raydd.store.progress import RECENT, dropped, follow, start_unit, start_work
from raydd.store.run import Run


def told(*log: tuple) -> list[dict]:
    """Events from (time, kind, facts)."""
    return [{"time": float(time), "event": kind, **facts} for time, kind, facts in log]


def begin(time, stage, total, left) -> tuple:
    return time, "work_started", {"stage": stage, "total": total, "left": left}


def committed(time, name) -> tuple:
    return time, "class_committed", {"name": name}


def test_classes_are_counted_from_what_was_left():
    work = follow(told(begin(100, "distill", 10, 4), committed(110, "a"), committed(120, "b")))["distill"]
    assert (work.done, work.total, work.before) == (8, 10, 6)
    assert work.rate(120) == pytest.approx(2 / 20) and work.rate(200) == pytest.approx(2 / 100)


def test_a_rate_is_of_the_last_units():
    log = [begin(0, "distill", 1000, 1000)]
    log += [committed(1000 + i, f"slow{i}") for i in range(50)]
    log += [committed(2000 + i / 10, f"fast{i}") for i in range(RECENT)]
    work = follow(told(*log))["distill"]
    # Hundred units since the last one before them, at 1049.
    assert work.rate(2010) == pytest.approx(RECENT / (2010 - 1049)) and work.done == 50 + RECENT


def test_no_rate_without_a_beginning_or_a_unit():
    assert follow(told(committed(5, "a")))["distill"].rate(10) is None
    assert follow(told(begin(0, "distill", 3, 3)))["distill"].rate(10) is None


def test_units_are_at_work_until_all_their_parts_are_done():
    pack = (1, "unit_started", {"name": "a+1", "parts": ["a", "b"]})
    alone = (1, "unit_started", {"name": "c", "parts": ["c"]})
    log = [begin(0, "distill", 3, 3), pack, alone, committed(2, "a")]
    assert set(follow(told(*log))["distill"].started) == {"a+1", "c"}
    log += [committed(3, "b"), committed(4, "c")]
    assert not follow(told(*log))["distill"].started


def test_a_unit_that_failed_is_told_until_it_is_tried_again():
    failed = [(2, "unit_failed", {"name": "c", "reason": "too few"})]
    log = [begin(0, "distill", 2, 2), (1, "unit_started", {"name": "c", "parts": ["c"]}), *failed]
    work = follow(told(*log))["distill"]
    assert work.failed == {"c": "too few"} and not work.started
    log += [(3, "unit_started", {"name": "c", "parts": ["c"]})]
    work = follow(told(*log))["distill"]
    assert not work.failed and set(work.started) == {"c"}
    assert not follow(told(*log, (4, "unit_retried", {"name": "c"})))["distill"].started


def test_a_stage_that_begins_again_forgets_what_its_last_job_left_open():
    log = [begin(0, "distill", 4, 4), (1, "unit_started", {"name": "a"}), committed(2, "b")]
    work = follow(told(*log, begin(50, "distill", 4, 3)))["distill"]
    assert (work.done, work.started, work.failed) == (1, {}, {})


def test_stages_follow_each_other_and_units_belong_to_the_one_that_began_last():
    works = follow(
        told(
            begin(0, "score", 300, 200),
            (1, "unit_scored", {"unit": "x", "images": 90, "dropped": 10}),
            begin(2, "distill", 1, 1),
            (3, "unit_started", {"name": "a"}),
            begin(4, "evaluate", 3, 3),
            (5, "unit_started", {"name": "hard-net-0"}),
            (6, "student_trained", {"name": "hard-net-0"}),
            begin(7, "experts", 2, 2),
            (8, "expert_trained", {"name": "0"}),
        )
    )
    assert works["score"].done == 200 and set(works["distill"].started) == {"a"}
    assert works["evaluate"].done == 1 and not works["evaluate"].started and works["experts"].done == 1


def test_dropped_images_of_a_shard_count_once():
    shard = {"unit": "x", "images": 5, "dropped": 2}
    log = told((1, "unit_scored", shard), (2, "unit_scored", shard), (3, "unit_scored", shard | {"unit": "y"}))
    assert dropped(log) == 4


def test_values_of_no_sense_are_nothing():
    log = told((1, "work_started", {"stage": "distill", "total": "many", "left": None}), (2, "class_committed", {}))
    log += [{"event": "unit_scored", "time": float("nan"), "images": 1e300, "dropped": -3, "unit": None}, {}]
    works = follow(log)
    assert works["distill"].total == 0 and works["score"].done == 0 and dropped(log) == 0


def test_announcements_are_read_back(tmp_path):
    run = Run(str(tmp_path))
    start_work(run, "distill", total=3, left=2)
    start_unit(run, "a+1", ["a", "b"])
    start_unit(run, "c")
    work = follow(events.read(run))["distill"]
    assert (work.total, work.done) == (3, 1) and work.started == {"a+1": {"a", "b"}, "c": {"c"}}
