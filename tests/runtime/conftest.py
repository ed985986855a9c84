"""One Ray for the tests marked `ray`, and ones of their own for those marked `cluster`.

Resources are logical, so four CPUs can be had on any machine.
"""

import os

import pytest
import toy_units

# Before Ray is imported: a token file in the home directory would otherwise lock this Ray.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")


@pytest.fixture
def shared_ray():
    """A Ray of this process with four logical CPUs, started once and joined by all tests that ask for it."""
    ray = pytest.importorskip("ray")
    if not ray.is_initialized():
        from raydd.runtime import cluster

        os.environ.update(cluster.QUIET | cluster.POLL | cluster.HERE)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    # Workers cannot import what lies beside the tests.
    ray.cloudpickle.register_pickle_by_value(toy_units)
    return ray


@pytest.fixture
def no_ray():
    """This process without a Ray, before and after: for tests that start their own."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    yield ray
    ray.shutdown()
