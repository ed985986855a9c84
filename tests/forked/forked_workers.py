"""Ray's worker processes of the tests are forked from one that has imported torch and Ray, instead of importing them.

Those imports are most of what starting a worker costs, and a worker group of Ray Train starts four to six
processes. What runs in a worker is the same, as a process of its own that can be killed like any other; only its parent
is another, and what a raylet starts is a stand-in that hands over its files, environment and arguments, and waits.

Nothing of raydd is imported before the fork, so a job's own copy of it is what a worker sees. Modules of Ray read many
RAY_* variables when they are imported: there is one server for each set of these. Where a server cannot be had, workers
start in Ray's own way, as all do with RAYDD_TESTS_FORK=0.
"""

import atexit
import hashlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FOLDER, OWNER = "RAYDD_TESTS_FORK_FOLDER", "RAYDD_TESTS_FORK_OWNER"
# What differs between workers, nodes and worker groups, and is read after the fork only: starts of names.
READ_LATER = (
    "RAY_JOB_ID",
    "RAY_RAYLET_PID",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_NODE_TYPE_NAME",
    "RAY_OVERRIDE_",
    "RAY_ADDRESS",
    "RAY_TRAIN_",
    "RAY_WARN_",
)
WAIT_S = 60.0
# A process with threads cannot be forked safely.
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def offer() -> None:
    """Have the workers of every Ray that is started from here on forked, until this process ends."""
    if os.environ.get("RAYDD_TESTS_FORK") == "0" or not sys.platform.startswith("linux"):
        return
    folder = tempfile.mkdtemp(prefix="fork-")
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ |= {FOLDER: folder, OWNER: str(owner), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def hand_over() -> None:
    """In what a raylet has started: let a server fork the worker, and end with it. Returns where that cannot be."""
    if FOLDER not in os.environ or (script_and_rest := _default_worker(sys.orig_argv)) is None:
        return
    script, *rest = script_and_rest
    link = _connect(Path(os.environ[FOLDER], _kind(os.environ)))
    if link is None:
        return
    # What `python script` would see: the script's folder comes first.
    path = [os.path.dirname(script), *sys.path]
    order = {"argv": [script, *rest], "path": path, "cwd": os.getcwd(), "environ": dict(os.environ)}
    socket.send_fds(link, [b"f"], [0, 1, 2])
    link.sendall(json.dumps(order).encode())
    link.shutdown(socket.SHUT_WR)
    link.recv(1)  # ends when the worker does, which holds the other end
    os._exit(0)


def _default_worker(argv: list[str]) -> list[str] | None:
    """Script and arguments of the worker; what Ray's set-up would do before is done here, or None if it is more."""
    scripts = [i for i, name in enumerate(argv) if name.endswith("workers/default_worker.py")]
    if not scripts:
        return None
    own = argv[1 : scripts[0]] + argv[scripts[0] + 1 :]
    if not argv[1].endswith("workers/setup_worker.py"):
        return argv[scripts[0] :]
    options = dict(part.partition("=")[::2] for part in own if part.startswith("--"))
    context = json.loads(options.get("--serialized-runtime-env-context") or "{}")
    given = {name: value for name, value in context.items() if value and name not in ("env_vars", "py_executable")}
    if given or context.get("py_executable", sys.executable) != sys.executable:
        return None
    os.environ |= {name: os.path.expandvars(value) for name, value in context.get("env_vars", {}).items()}
    rest = [part for part in own[1:] if not part.startswith(("--serialized-runtime-env-context", "--language"))]
    return [argv[scripts[0]], *rest]


def _kind(environ: dict[str, str]) -> str:
    shown = sorted(
        (name, value) for name, value in environ.items() if name.startswith("RAY_") and not name.startswith(READ_LATER)
    )
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:12]


def _connect(place: Path) -> socket.socket | None:
    """A link to the server at `place`, which is started if nobody has; None if it does not answer."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(place))
            return link
        except OSError:
            link.close()
        try:
            os.close(os.open(f"{place}.begun", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            time.sleep(0.05)
        except OSError:  # the tests are over, and the folder is gone
            return None
        else:
            code = f"import forked_workers; forked_workers.serve({str(place)!r})"
            with open(f"{place}.log", "wb") as log:
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    env=os.environ | ALONE | {"RAY_RAYLET_PID": os.environ[OWNER]},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
    return None


def warm_up() -> None:
    """Import what every worker imports, without drawing from Ray's generator of random names.

    It has no state before its first draw; with one, all forked workers would give the same names to different things.
    """
    import pandas  # noqa: F401
    import ray.actor
    import torch  # noqa: F401

    # Actor classes draw a name when they are defined, which these modules do.
    class Named(ray.actor.ActorClassID):
        @classmethod
        def from_random(cls) -> ray.actor.ActorClassID:
            return ray.ActorClassID(os.urandom(ray.ActorClassID.size()))

    ray.actor.ActorClassID = Named
    import ray.data
    import ray.train

    ray.actor.ActorClassID = ray.ActorClassID


def serve(place: str) -> None:
    """Fork a worker for each link, for as long as the tests run."""
    warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    with socket.socket(socket.AF_UNIX) as listener:
        # Under its name only once it listens: a refused link would be tried again, but later.
        listener.bind(f"{place}.new")
        listener.listen(64)
        os.rename(f"{place}.new", place)
        while os.path.exists(place) and _lives(int(os.environ[OWNER])):
            if not select.select([listener], [], [], 1.0)[0]:
                continue
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _become(link)
            link.close()


def _lives(process: int) -> bool:
    """Whether there is such a process that is no zombie, which nobody may have waited for yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _end_with(raylet: int) -> None:
    """End this worker when its raylet has ended: Ray's own look is at what it was told when it was imported."""
    while _lives(raylet):
        time.sleep(1.0)
    os._exit(1)


def _become(link: socket.socket) -> None:
    """In a forked process: be the worker that was ordered through `link`, whose end is open as long as it lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    _, files, _, _ = socket.recv_fds(link, 1, 3)
    order = json.loads(b"".join(iter(lambda: link.recv(65536), b"")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ |= order["environ"]
    os.chdir(order["cwd"])
    sys.argv, sys.path[:] = order["argv"], order["path"]
    threading.Thread(target=_end_with, args=(int(os.environ["RAY_RAYLET_PID"]),), daemon=True).start()
    runpy.run_path(order["argv"][0], run_name="__main__")
