"""The queue gives each unit to one worker, longest first, and charges a crash to the unit that caused it, only."""

import pytest

from raydd.runtime.queue import MAX_ATTEMPTS, UnitQueue
from raydd.runtime.work import Failure


class Workers:
    """Who crashed."""

    def __init__(self):
        self.crashed = set()

    def died(self, worker):
        return worker in self.crashed


def test_units_come_longest_first_and_each_once():
    queue = UnitQueue({"a": 1.0, "b": 3.0, "c": 2.0}, lambda worker: False)
    assert [queue.take("g", f"w{i}") for i in range(4)] == ["b", "c", "a", None]


def test_a_new_group_gets_what_was_not_finished_and_an_old_worker_gets_nothing():
    queue = UnitQueue({"a": 2.0, "b": 1.0, "c": 0.0}, lambda worker: False)
    queue.take("g1", "w1")
    queue.take("g1", "w2")
    queue.finish("a")
    assert queue.take("g2", "w3") == "b"
    assert queue.take("g1", "w2") is None
    assert queue.take("g2", "w4") == "c"
    assert queue.take("g2", "w5") is None


def test_only_the_unit_whose_process_died_is_given_up():
    workers = Workers()
    queue = UnitQueue({"poison": 9.0, "long": 8.0, "short": 1.0}, workers.died)
    for group in range(20):
        taken = {queue.take(f"g{group}", f"w{group}-{i}"): f"w{group}-{i}" for i in range(3)}
        if "poison" not in taken:
            break
        workers.crashed.add(taken["poison"])
    assert set(queue.failures) == {"poison"}
    assert f"died {MAX_ATTEMPTS} times" in queue.failures["poison"].reason
    assert queue.attempts["long"] == 0
    assert group == MAX_ATTEMPTS
    assert set(taken) == {"long", "short", None}


def test_resizes_and_lost_nodes_never_give_a_unit_up():
    queue = UnitQueue({"long": 1.0}, lambda worker: False)
    for group in range(50):
        assert queue.take(f"g{group}", f"w{group}") == "long"
    assert queue.failures == {}


def test_a_new_group_voids_only_the_leases_of_its_own_slot():
    workers = Workers()
    queue = UnitQueue({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, workers.died)
    assert [queue.take("g1", "w1", 0), queue.take("h1", "v1", 1), queue.take("g1", "w2", 0)] == ["a", "b", "c"]
    workers.crashed |= {"w1", "v1"}
    # The crash of w1 restarts slot 0: its units come again, the charged one last, and b stays with the other slot.
    assert [queue.take("g2", f"w{i}", 0) for i in range(3, 7)] == ["c", "d", "a", None]
    assert queue.attempts == {"a": 1, "c": 0}
    assert queue.take("g1", "w2", 0) is None and queue.take("h1", "v2", 1) is None
    assert queue.take("h2", "v3", 1) == "b" and queue.attempts["b"] == 1


def test_a_crash_that_cannot_be_judged_counts():
    queue = UnitQueue({"a": 1.0}, lambda worker: None)
    for group in range(MAX_ATTEMPTS):
        assert queue.take(f"g{group}", "w") == "a"
    assert queue.take("last", "w") is None
    assert list(queue.failures) == ["a"]


def test_a_unit_that_gets_on_outlives_any_number_of_crashes():
    queue = UnitQueue({"long": 1.0}, lambda worker: True)
    for group in range(10):
        assert queue.take(f"g{group}", "w") == "long"
        queue.advance("long", group + 1)
    assert queue.failures == {}
    # From here on it saves no further than before.
    for group in range(MAX_ATTEMPTS - 1):
        assert queue.take(f"h{group}", "w") == "long"
        queue.advance("long", 10 - group)
    assert queue.take("last", "w") is None
    assert set(queue.failures) == {"long"}


def test_crashed_units_wait_until_the_others_are_done():
    workers = Workers()
    queue = UnitQueue({"poison": 9.0, "b": 2.0, "c": 1.0}, workers.died)
    assert queue.take("g1", "w1") == "poison"
    workers.crashed.add("w1")
    assert [queue.take("g2", f"w{i}") for i in range(2, 5)] == ["b", "c", "poison"]


def test_a_failed_unit_is_not_handed_out_again():
    queue = UnitQueue({"a": 2.0, "b": 1.0}, lambda worker: True)
    assert queue.take("g1", "w1") == "a"
    queue.fail("a", Failure("wrong"))
    assert queue.take("g2", "w2") == "b"
    assert queue.take("g2", "w3") is None
    assert queue.failed() == {"a": Failure("wrong")}


def test_news_come_once():
    queue = UnitQueue({"a": 2.0, "b": 1.0}, lambda worker: True)
    queue.take("g1", "w1")
    queue.take("g1", "w2")
    queue.finish("b")
    queue.tell("hello")
    queue.take("g2", "w3")
    news = queue.news()
    assert (news.finished, news.failed, news.lines) == (1, 0, ["hello"])
    assert news.events == [("a", "unit_retried", {"crashed": True, "attempts": 1})]
    queue.fail("a", Failure("wrong"))
    news = queue.news()
    assert (news.finished, news.failed, news.lines) == (1, 1, [])
    assert news.events == [("a", "unit_failed", {"reason": "wrong"})]


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_rebuilt_queue_loses_no_unit(lost):
    queue = UnitQueue({"a": 2.0, "b": 1.0}, lambda worker: False)
    if lost == "after":
        queue.take("g1", "w1")
    queue = UnitQueue(queue.costs, lambda worker: False)
    assert {queue.take("g1", "w1"), queue.take("g1", "w2")} == {"a", "b"}


def test_after_an_abort_nothing_is_handed_out_and_all_that_is_left_has_failed():
    queue = UnitQueue({"a": 3.0, "b": 2.0, "c": 1.0}, lambda worker: True)
    queue.take("g", "w1")
    queue.finish("a")
    queue.take("g", "w1")
    queue.abort(Failure("no such package"))
    assert queue.take("g", "w2") is None
    assert set(queue.failed()) == {"b", "c"}
