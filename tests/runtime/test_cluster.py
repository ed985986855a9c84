"""Connecting, counting places, and finding the user's error in what Ray makes of it."""

import pytest
from scoring import all_rows, score_source
from small_sources import write_imagefolder, write_teacher
from toy_units import toys

from raydd.errors import UserError
from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources
from raydd.store.reach import Unreachable

cluster = pytest.importorskip("raydd.runtime.cluster")


def places(monkeypatch, have, may=None):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(cluster, "configured_resources", lambda: may or {})
    return lambda units, **options: cluster.worker_count(Resources(**options), units)


def test_one_worker_per_cpu_share_but_no_more_than_units(monkeypatch):
    count = places(monkeypatch, {"CPU": 8.0})
    assert count(100) == (8, {"CPU": 1.0}, False)
    assert count(100, threads=3) == (2, {"CPU": 3.0}, False)
    assert count(3) == (3, {"CPU": 1.0}, False)
    assert count(100, workers=5) == (5, {"CPU": 1.0}, False)
    assert count(100, workers=50) == (8, {"CPU": 1.0}, False)
    assert count(100, threads=99) == (1, {"CPU": 8.0}, False)


def test_one_worker_per_gpu_where_there_are_or_will_be_some(monkeypatch):
    each = {"GPU": 1.0, "CPU": 0.0}
    assert places(monkeypatch, {"CPU": 64.0, "GPU": 4.0})(100) == (4, each, True)
    assert places(monkeypatch, {"CPU": 1.0}, {"CPU": 64.0, "GPU": 16.0})(100) == (16, each, True)
    assert places(monkeypatch, {"CPU": 1.0}, {"GPU": 16.0})(100, workers=2) == (2, each, True)


class FromWorker(Exception):
    """What Ray raises: the cause as an object, or in the text only."""

    def __init__(self, text="", cause=None, failures=None):
        super().__init__(text)
        self.cause, self.worker_failures = cause, failures or {}


@pytest.mark.parametrize(
    "error",
    [
        FromWorker(cause=UserError("do that")),
        FromWorker(failures={1: FromWorker(cause=Unreachable("do that"))}),
        FromWorker("Traceback:\n  File 'x'\nraydd.errors.UserError: do that\n"),
        FromWorker("ray::f()\nraydd.store.reach.Unreachable: do that\n\nThe above exception was the cause\nother: x"),
    ],
)
def test_a_users_error_is_found_below_what_ray_raises(error):
    with pytest.raises(UserError, match=r"^do that$"), cluster.cause():
        raise error


@pytest.mark.parametrize("error", [FromWorker("KeyError: raydd"), FromWorker("raydd.errors.Other: no"), KeyError("x")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, cluster.cause():
        raise error
    assert caught.value is error


@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_named_at_once(address, no_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"cannot join the Ray cluster at {address}: .*check RAY_ADDRESS"):
        cluster.connect()


@pytest.mark.parametrize(
    ("joined", "address", "watched"), [(False, None, False), (False, "10.0.0.1:6379", True), (True, None, True)]
)
def test_notices_of_preemption_are_watched_for_except_on_a_ray_of_our_own(joined, address, watched, monkeypatch):
    environment = {"RAY_ADDRESS": address} if address else {}
    monkeypatch.setattr(cluster.os, "environ", environment)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: joined)
    for name in ("_start", "_release_actors", "_hush"):
        monkeypatch.setattr(cluster, name, lambda *_: None)
    monkeypatch.setattr(cluster.metrics, "watch", lambda: None)
    cluster.connect()
    assert ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in environment) == watched
    assert bool(environment.get(cluster.ALONE)) != watched
    assert environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.5"


@pytest.mark.ray
def test_workers_with_gpus_give_the_same_result(no_ray, tmp_path):
    """On GPUs reading and decoding are tasks apart from the scoring actors; here the GPUs are only numbers."""
    import toy_units

    data, teacher = write_imagefolder(tmp_path / "data"), write_teacher(tmp_path / "teacher")
    oracle = all_rows(score_source(data, teacher, tmp_path / "local", "local"))
    no_ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    no_ray.cloudpickle.register_pickle_by_value(toy_units)
    ours = all_rows(score_source(data, teacher, tmp_path / "ray", "ray"))
    assert all(a.equals(b) for a, b in zip(ours, oracle))
    units = toys(tmp_path, a="ok", b="ok", c="ok")
    run_units(units, Resources(), "toys", storage=str(tmp_path / "state"))
    assert all(unit.is_done() for unit in units)
