"""Executor-free parts: the progress line comes at the right times, errors become one line, resources are checked."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import torch

from raydd.errors import Unfinished, UserError
from raydd.runtime.work import (
    MANY,
    THREAD_VARIABLES,
    Failure,
    Resources,
    Ticker,
    describe,
    raise_unfinished,
    settle,
    undone,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"executor": "rya"}, "did you mean 'ray'"), ({"workers": 0}, "--workers 0"), ({"threads": 0}, "--threads 0")],
)
def test_resources_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        Resources(**changes).check()


def test_ticker_speaks_when_time_has_passed_and_once_at_the_end():
    lines = []
    ticker = Ticker("things", 3, every=3600, say=lines.append)
    for done in (0, 1, 2):
        ticker.update(done)
    assert lines == []
    ticker.update(3, ", all fine")
    ticker.update(3)
    assert len(lines) == 1
    assert lines[0].startswith("things: 3/3 in 0 s")
    assert lines[0].endswith(", all fine")
    often = Ticker("things", 3, every=0, say=lines.append)
    often.update(0)
    often.update(0)
    assert len(lines) == 3


def test_a_users_error_is_told_without_and_a_bug_with_its_traceback():
    assert describe(UserError("wrong:\n  do that")) == Failure("wrong: do that")
    try:
        raise KeyError("x")
    except KeyError as error:
        failure = describe(error)
    assert failure.reason == "KeyError: 'x'"
    assert "test_work.py" in failure.trace


def test_unfinished_names_the_first_counts_the_others_and_carries_the_traceback():
    raise_unfinished("classes", {}, [])
    with pytest.raises(Unfinished, match=r"^classes 'a' failed: why \(and 2 more\); .* same command again$") as caught:
        raise_unfinished("classes", {"a": Failure("why", "the trace"), "b": Failure("so")}, ["c"])
    assert "the trace" in str(caught.value.__cause__)
    with pytest.raises(Unfinished, match="'c' failed: its worker was lost too often"):
        raise_unfinished("classes", {}, ["c"])


@pytest.mark.parametrize("count", [3, 2 * MANY])
def test_units_that_are_not_done_come_in_order_and_many_do_not_wait_for_each_other(count):
    @dataclasses.dataclass(frozen=True)
    class Asked:
        number: int
        seconds: float = 0.01

        def is_done(self):
            time.sleep(self.seconds)
            return self.number % 3 == 0

    start = time.monotonic()
    assert [unit.number for unit in undone([Asked(i) for i in range(count)])] == [i for i in range(count) if i % 3]
    assert time.monotonic() - start < 0.5 * count * 0.01 or count < MANY


def test_settle_fixes_threads_of_torch_and_of_libraries_loaded_later(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    before = torch.get_num_threads()
    try:
        assert settle(1) in ("cpu", "cuda")
        assert torch.get_num_threads() == 1
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"1"}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("module", ["raydd.runtime.work", "raydd.runtime.queue"])
def test_what_every_worker_process_imports_does_not_pull_in_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_terminal_sees_one_line_rewritten(capsys):
    ticker = Ticker("students", 3, every=0.0, terminal=True)
    for done in (1, 2, 3):
        ticker.update(done)
    text = capsys.readouterr().out
    assert text.count("\r") == 3 and text.count("\n") == 1 and text.endswith("\n")
    assert "students: 3/3" in text.rsplit("\r", 1)[1]
