"""Events are read in order from a local file and from an object store; folding loses none and repeats none."""

import threading

import pytest

from raydd.store import events
from raydd.store import filesystem as files
from raydd.store.run import Run


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")


def numbers(run: Run) -> list[int]:
    return [event["number"] for event in events.read(run)]


def test_events_come_back_in_order_with_time_and_facts(run):
    assert events.read(run) == []
    for number in range(5):
        events.append(run, "unit_started", number=number, name="class 3")
    assert numbers(run) == list(range(5))
    assert all(event["event"] == "unit_started" and event["time"] > 1e9 for event in events.read(run))


def test_folding_keeps_order_and_goes_on(run):
    for number in range(3):
        events.append(run, "x", number=number)
    events.fold(run)
    events.append(run, "x", number=3)
    assert numbers(run) == [0, 1, 2, 3]
    events.fold(run)
    assert numbers(run) == [0, 1, 2, 3]
    assert files.list_files(run.path("state", "events")) == []


def test_a_batch_is_written_together_and_each_event_keeps_its_time(run, monkeypatch):
    batch = events.Batch(run, every_s=3600)
    for number in range(3):
        batch.append("x", number=number)
    assert numbers(run) == []
    batch.flush()
    batch.flush()
    first = events.read(run)
    assert [event["number"] for event in first] == [0, 1, 2]
    if not files.is_local(run.uri):
        assert len(files.list_files(run.path("state", "events"))) == 1
    late = events.Batch(run, every_s=0.0)
    late.append("x", number=3)
    events.append(run, "x", number=4)
    assert numbers(run) == [0, 1, 2, 3, 4]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(files, "remove_files", lambda uri, names: None)
            events.fold(run)
        assert numbers(run) == [0, 1, 2, 3, 4]


def test_listeners_hear_every_event_once(run, monkeypatch):
    monkeypatch.setattr(events, "_listeners", [])
    heard = []

    def listener(event, facts):
        heard.append((event, facts["number"]))

    events.listen(listener)
    events.listen(listener)
    events.append(run, "x", number=0)
    batch = events.Batch(run, every_s=3600)
    batch.append("y", number=1)
    batch.flush()
    assert heard == [("x", 0), ("y", 1)]


def test_a_fold_killed_before_its_removals_repeats_nothing(tmp_path, monkeypatch):
    run = Run(f"memory://{tmp_path}/run")
    events.append(run, "x", number=0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_files", lambda uri, names: None)
        events.fold(run)
    events.fold(run)
    assert numbers(run) == [0]


def test_an_event_that_arrives_while_folding_stays(tmp_path, monkeypatch):
    run = Run(f"memory://{tmp_path}/run")
    events.append(run, "x", number=0)
    write = files.write_atomic

    def write_late(uri, data):
        write(uri, data)
        if uri.endswith("events.jsonl"):
            write(run.path("state", "events", "9-late.json"), b'{"event": "x", "number": 1}\n')

    monkeypatch.setattr(files, "write_atomic", write_late)
    events.fold(run)
    assert numbers(run) == [0, 1]


def test_a_cut_line_is_left_out(tmp_path):
    run = Run(str(tmp_path / "run"))
    events.append(run, "x", number=0)
    with open(run.path("events.jsonl"), "a") as file:
        file.write('{"event": "x", "num')
    assert numbers(run) == [0]


def test_writers_at_once_do_not_mix_lines(tmp_path):
    run = Run(str(tmp_path / "run"))

    def write(start):
        for number in range(start, start + 50):
            events.append(run, "x", number=number, name="n" * 300)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(run)) == list(range(200))
