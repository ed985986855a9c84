"""Ray's counters tell what the events tell, and a metric that fails disturbs nothing."""

from collections import Counter
from typing import ClassVar

import pytest

from raydd.store import events
from raydd.store.run import Run

metrics = pytest.importorskip("raydd.runtime.metrics")


class Recorder:
    """Counts like Ray's counters, and checks tags as they do."""

    totals: ClassVar[Counter] = Counter()

    def __init__(self, name, description, tag_keys):
        assert description
        self.name, self.tag_keys = name, tag_keys

    def inc(self, value=1.0, tags=None):
        assert set(tags or {}) == set(self.tag_keys)
        Recorder.totals[self.name, *(tags or {}).values()] += value


@pytest.fixture
def totals(monkeypatch):
    monkeypatch.setattr(metrics, "Counter", Recorder)
    monkeypatch.setattr(events, "_listeners", [])
    monkeypatch.setattr(Recorder, "totals", Counter())
    metrics._counter.cache_clear()
    yield lambda: dict(Recorder.totals)
    metrics._counter.cache_clear()


def test_counters_follow_the_events(totals, tmp_path):
    run = Run(str(tmp_path / "run"))
    metrics.watch()
    metrics.watch()
    events.append(run, "work_started", stage="score", total=10, left=10)
    for images in (3, 4):
        events.append(run, "unit_scored", unit=f"u{images}", images=images, dropped=1, seconds=0.5)
    events.append(run, "class_committed", name="a", images=10, seconds=1.0)
    events.append(run, "unit_retried", name="a", crashed=True, attempts=1)
    events.append(run, "unit_failed", name="b", reason="why")
    events.append(run, "student_trained", name="s", last=0.5, seconds=1)
    assert totals() == {
        ("raydd_units_total", "score"): 2,
        ("raydd_images_total", "score"): 7,
        ("raydd_units_total", "distill"): 1,
        ("raydd_images_total", "distill"): 10,
        ("raydd_units_total", "evaluate"): 1,
        ("raydd_retries_total",): 1,
        ("raydd_failures_total",): 1,
    }


def test_the_event_is_written_although_its_metric_fails(totals, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "inc", None)
    run = Run(str(tmp_path / "run"))
    metrics.watch()
    events.append(run, "unit_failed", name="b", reason="why")
    assert [event["event"] for event in events.read(run)] == ["unit_failed"]
    assert totals() == {}


def test_nothing_is_counted_unless_asked(totals, tmp_path):
    events.append(Run(str(tmp_path / "run")), "unit_failed", name="b", reason="why")
    assert totals() == {}
