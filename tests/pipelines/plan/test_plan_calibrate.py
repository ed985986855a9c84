"""Timing keeps to its time and to the usual batch, by a clock of its own; files come back as they were written."""

import dataclasses
import json

import pytest

from raydd.errors import UserError
from raydd.pipelines.plan import calibrate
from raydd.pipelines.plan.calibrate import Calibration, Rate, load, save, time_rows
from raydd.pipelines.plan.cost import Amount, Op

DENOISE, READ = Op("denoise", "prior a"), Op("read", "8 px")
KNOWN = Calibration(
    device="cuda",
    machine="a GPU",
    threads=2,
    made="2026-01-01",
    rates={DENOISE: Rate(0.5, 8), READ: Rate(0.25, 32)},
    image_bytes={"png at 8 px": 100.5},
)


class Clock:
    """Time that passes only when something runs: a call's own seconds, and seconds per row."""

    def __init__(self, call: float, row: float, first: float = 0.0):
        self.now, self.call, self.row, self.first = 0.0, call, row, first
        self.seen: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def run(self, rows: int) -> int:
        self.now += self.call + rows * self.row + (0 if self.seen else self.first)
        self.seen.append(rows)
        return rows


def timed(monkeypatch, clock: Clock, batch: int, seconds: float) -> Rate:
    monkeypatch.setattr(calibrate, "time", clock)
    return time_rows(clock.run, batch, seconds, lambda: None)


def test_the_usual_batch_is_reached(monkeypatch):
    clock = Clock(call=0.01, row=0.001, first=0.5)
    rate = timed(monkeypatch, clock, 100, 10.0)
    assert rate.rows == 100 and rate.seconds == pytest.approx(0.11 / 100)
    # Five that count, after the first one again, and those that grew to the batch.
    assert clock.seen == [1, 1, 4, 16, 64, 100, *[100] * 5]


def test_time_is_kept(monkeypatch):
    clock = Clock(call=0.0, row=0.1)
    rate = timed(monkeypatch, clock, 1000, 3.0)
    assert rate == Rate(pytest.approx(0.1), 4) and clock.now < 3.4


def test_one_call_that_takes_too_long_is_made_once(monkeypatch):
    clock = Clock(call=60.0, row=1.0)
    assert timed(monkeypatch, clock, 64, 2.0) == Rate(61.0, 1) and clock.seen == [1]


def test_a_slow_start_does_not_count(monkeypatch):
    clock = Clock(call=0.0, row=0.1, first=1.0)
    assert timed(monkeypatch, clock, 1, 2.0).seconds == pytest.approx(0.1)


def test_seconds_of_a_work():
    work = {DENOISE: Amount(2, 16), READ: Amount(1, 4)}
    assert KNOWN.seconds(work) == {"denoise": 8.0, "read": 1.0} and KNOWN.split(work) == (8.0, 1.0)


def test_a_file_comes_back(tmp_path):
    uri = str(tmp_path / "gpu.json")
    save(KNOWN, uri)
    assert load(uri) == dataclasses.replace(KNOWN, file=uri)


def test_files_that_are_none(tmp_path):
    uri = str(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist: write one with --save-calibration"):
        load(uri)
    save(KNOWN, uri)
    good = json.loads((tmp_path / "x.json").read_text())
    for bad in ("[", "[]", "{}", json.dumps(good | {"format": "2"}), json.dumps(good | {"rates": [{"kind": 1}]})):
        (tmp_path / "x.json").write_text(bad)
        with pytest.raises(UserError, match=r"is none .*: give a file that 'raydd plan' wrote"):
            load(uri)


def test_an_operation_without_seconds():
    KNOWN.check([DENOISE, READ])
    given = dataclasses.replace(KNOWN, file="gpu.json")
    with pytest.raises(UserError, match=r"gpu.json has no seconds for denoiser forwards with prior b \(it has"):
        given.check([Op("denoise", "prior b")])
    with pytest.raises(UserError, match=r"teacher forwards with teacher c \(it is of another method\): run this"):
        given.check([Op("teacher", "teacher c")])
