"""What all tests share: one thread, a cache of their own, and a small teacher of the digits."""

import os

# Read when ray is first imported, which workers inherit.
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import torch
from forked import forked_workers

torch.set_num_threads(1)
forked_workers.offer()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2`, what needs Ray and mostly waits is one process's, which starts it once; the rest goes by files."""
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "runtime" if nodeid.startswith("tests/runtime/") else super()._split_scope(nodeid)

    return RayTogether(config, log)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The packaged digits are written here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory) -> str:
    """Directory of an early and a converged ConvNet-3 (16 channels) of the digits at 16 px."""
    from raydd.pipelines.teacher import TeacherOptions, train
    from raydd.runtime.work import Resources

    out = str(tmp_path_factory.mktemp("teacher"))
    recipe = {"arch": "convnet3", "width": 16, "size": 16, "epochs": 8, "early_epochs": 3, "batch": 64, "flip": False}
    train(TeacherOptions(data="digits", out=out, **recipe), Resources(executor="local"))
    return out
