"""Workers of the tests are forked with all imports done, and are as separate as any others."""

import json
import os
import sys

import pytest
from forked import forked_workers

SCRIPTS = "/ray/_private/workers"
DEFAULT, SETUP = f"{SCRIPTS}/default_worker.py", f"{SCRIPTS}/setup_worker.py"


def started(*arguments: str) -> list[str] | None:
    return forked_workers._default_worker([sys.executable, *arguments])


def test_what_a_raylet_starts_is_understood():
    assert started(DEFAULT, "--port=1", "--x") == [DEFAULT, "--port=1", "--x"]
    assert started("/elsewhere/setup.py", "--port=1") is None


def test_an_environment_of_variables_is_set_up_here(monkeypatch):
    monkeypatch.setenv("FORKED_TEST", "old")
    monkeypatch.setenv("FORKED_PLACE", "here")
    context = {
        "env_vars": {"FORKED_TEST": "${FORKED_PLACE}/new"},
        "command_prefix": [],
        "py_executable": sys.executable,
    }
    line = (f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON")
    assert started(SETUP, DEFAULT, "--port=1", *line) == [DEFAULT, "--port=1"]
    assert os.environ["FORKED_TEST"] == "here/new"


@pytest.mark.parametrize("more", [{"command_prefix": ["cd there &&"]}, {"py_executable": "/other/python"}])
def test_more_than_variables_is_left_to_ray(more, monkeypatch):
    monkeypatch.setenv("FORKED_TEST", "old")
    context = {"env_vars": {"FORKED_TEST": "new"}, "command_prefix": [], "py_executable": sys.executable} | more
    assert started(SETUP, DEFAULT, f"--serialized-runtime-env-context={json.dumps(context)}") is None
    assert os.environ["FORKED_TEST"] == "old"


def test_servers_differ_by_rays_variables_only():
    environ = {"RAY_A": "1", "RAY_JOB_ID": "1", "RAY_RAYLET_PID": "2", "HOME": "here"}
    same = environ | {"RAY_JOB_ID": "3", "RAY_RAYLET_PID": "4", "HOME": "there"}
    assert forked_workers._kind(environ) == forked_workers._kind(same) != forked_workers._kind(environ | {"RAY_A": "2"})


@pytest.mark.ray
@pytest.mark.skipif(forked_workers.FOLDER not in os.environ, reason="workers are not forked here")
def test_workers_are_warm_and_give_names_of_their_own(shared_ray):
    def look() -> dict[str, object]:
        import os
        import random
        import sys

        from ray._raylet import ObjectRef

        loaded = {name.partition(".")[0] for name in sys.modules}
        raylet = int(os.environ["RAY_RAYLET_PID"])
        return {
            "warm": {"torch", "pandas"} <= loaded and "raydd" not in loaded,
            "forked": os.getppid() != raylet,
            "names": (os.getpid(), ObjectRef.from_random().hex(), random.random()),
        }

    class Looking:
        def look(self) -> dict[str, object]:
            return look()

    actors = [shared_ray.remote(Looking).remote() for _ in range(3)]
    found = shared_ray.get([actor.look.remote() for actor in actors])
    assert all(one["warm"] and one["forked"] for one in found)
    assert all(len(set(names)) == 3 for names in zip(*(one["names"] for one in found)))
