"""Nothing that raydd reads can run code, reach outside, or bring it down: hostile files go through real commands.

Every case asserts three things: no file appears that the planted code would make, nothing outside the command's own
output changes, and what a person sees is one line (or a finished set that lists what was dropped).
"""

import shutil
from pathlib import Path

import hostile
import pytest
from commandline import done
from hostile import SMALL


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """Two classes of three pictures."""
    return hostile.write_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, source) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    done("distill", "random", "--data", source, "--out", out, *SMALL)
    return out


@pytest.fixture
def canary(tmp_path):
    """A file that only planted code would make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "planted code ran"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
