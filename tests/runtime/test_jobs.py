"""The scripts of jobs/ under `ray job submit`, on a cluster that wants a token: exit codes, and readable logs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")

pytestmark = pytest.mark.cluster


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Environment and address of a protected head node with two logical CPUs."""
    if not RAY.exists():
        pytest.skip("the ray command is not installed beside this Python")
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    complaints = []
    # A port that was free may be taken by another program before Ray binds it: one more try, with others.
    for attempt in range(2):
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(head_node(environment, home / f"head-{attempt}.log"))
            if complaint := wait_for_jobs(environment, address):
                complaints += [complaint, (home / f"head-{attempt}.log").read_text()]
                continue
            yield environment, address
            return
    pytest.fail("\n".join(complaints))


@contextlib.contextmanager
def head_node(environment, log):
    """The dashboard's address of a head that is stopped at the end, whatever happens meanwhile."""
    # Session folders hold sockets, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="raydd-", dir="/tmp")
    port, dashboard = free_port(), free_port()
    # The agents' and the client's default ports belong to whoever started a Ray on this machine first.
    others = f"--dashboard-agent-listen-port {free_port()} --ray-client-server-port {free_port()}"
    line = f"start --head --block --num-cpus 2 --port {port} --dashboard-port {dashboard} --temp-dir {folder} {others}"
    with log.open("w") as sink:
        started = subprocess.Popen(
            [RAY, *line.split()], env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait(timeout=5)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_jobs(environment, address, seconds=90):
    """None once a job has run; else what the last try said. A head that answers may not have an agent for jobs yet."""
    deadline, said = time.monotonic() + seconds, "nothing"
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            probe = [RAY, "job", "submit", "--address", address, "--", "true"]
            tried = subprocess.run(probe, env=environment, capture_output=True, text=True, timeout=30)
            if tried.returncode == 0:
                return None
            said = tried.stdout + tried.stderr
        time.sleep(0.5)
    return said


def submit(head, script):
    """Run a job from a copy of the working tree: its exit code, its lines, and all that was printed."""
    environment, address = head
    line = f"job submit --address {address} --working-dir {ROOT} -- {sys.executable} {script}"
    done = subprocess.run([RAY, *line.split()], env=environment, capture_output=True, text=True, timeout=200)
    lines = done.stdout.split("Tailing logs until the job exits")[-1].splitlines()[1:]
    return done.returncode, lines, done.stdout + done.stderr


def preset(out, teacher):
    """The command of three methods, a student of each, and a report."""
    options = "--size 16 --factor 1 --ipc 1 --students convnet3 --protocol noaug:quick --seeds 1 --no-flip"
    return f"jobs/infoutil_in1k.py --data digits --out {out} --teacher {teacher} {options}"


@pytest.mark.timeout(600)
def test_a_preset_runs_and_goes_on_and_fails_in_one_line(head, digits_teacher, tmp_path):
    line = preset(tmp_path, digits_teacher)
    code, lines, log = submit(head, line)
    assert code == 0, log
    assert any(text.startswith("classes: 30/30") for text in lines)
    assert any(text.startswith("students: 3/3") for text in lines)
    assert any("infoutil" in text and "(1)" in text for text in lines)
    assert not [text for text in lines if any(word in text for word in ("Traceback", "Warn", "WARN", "ERROR"))], log
    assert (tmp_path / "report.html").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert len(before) == 30

    code, lines, log = submit(head, line)
    assert code == 0, log
    assert not any(text.startswith(("classes:", "students:", "scored")) for text in lines)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}

    run = tmp_path / "infoutil-ipc1-seed0"
    hashes = json.loads((run / "distilled" / "dataset.json").read_text())["hashes"]
    again = f"jobs/redistill.py infoutil --data digits --out {run} --teacher {digits_teacher} --size 16 --ipc 1"
    code, lines, log = submit(head, f"{again} --factor 1 --scores {tmp_path}/scores --classes 4")
    assert code == 0, log
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert [path.parent.name for path in after if after[path] != before[path]] == ["label=4"]
    assert json.loads((run / "distilled" / "dataset.json").read_text())["hashes"] == hashes

    code, lines, log = submit(head, f"jobs/infoutil_in1k.py --data {tmp_path}/nowhere --out {tmp_path}")
    assert code != 0
    assert [text for text in lines if text.startswith("raydd: ") and "nowhere does not exist" in text]
    assert "Traceback" not in log


@pytest.mark.timeout(600)
def test_a_stopped_job_leaves_a_run_that_goes_on(head, digits_teacher, tmp_path):
    environment, address = head
    line = preset(tmp_path, digits_teacher)
    begin = f"job submit --address {address} --working-dir {ROOT} --no-wait --submission-id stopped -- {sys.executable}"
    subprocess.run([RAY, *begin.split(), *line.split()], env=environment, check=True, capture_output=True)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("done.json")):
        assert time.monotonic() < deadline, "no class was committed"
        time.sleep(0.2)
    stop = f"job stop --address {address} stopped"
    told = subprocess.run([RAY, *stop.split()], env=environment, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and "stopped" in told.stdout, told.stdout + told.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert before and not (tmp_path / "report.html").exists()

    code, lines, log = submit(head, line)
    assert code == 0, log
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert len(after) == 30 and before.items() <= after.items()
    assert any(text.startswith("students: 3/3") for text in lines) and (tmp_path / "report.html").exists()
