"""The names that Ray does not promise to keep still work. Last passed on Ray 2.60.0."""

import os
import time

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def test_the_trainer_without_a_process_group_is_the_new_one():
    from raydd.runtime._ray_private import data_parallel_trainer

    assert data_parallel_trainer().__module__ == "ray.train.v2.api.data_parallel_trainer"


@pytest.mark.parametrize(("alone", "idle"), [(True, 2), (False, 1)])
def test_a_lean_trainer_leaves_out_what_ray_still_calls_so(alone, idle):
    import ray.train

    from raydd.runtime._ray_private import data_parallel_trainer, lean

    def parts(kind: type) -> list[str]:
        made = kind(print, scaling_config=ray.train.ScalingConfig(num_workers=1))
        return [type(part).__name__ for part in made._create_default_callbacks()]

    whole, left = parts(data_parallel_trainer()), parts(lean(data_parallel_trainer(), alone))
    assert set(left) < set(whole) and len(left) == len(whole) - idle
    assert {"BackendSetupCallback", "AcceleratorSetupCallback"} < set(left)


def test_a_crash_is_told_from_a_kill(shared_ray):
    from raydd.runtime._ray_private import died_by_itself

    @shared_ray.remote(num_cpus=0)
    class Actor:
        def name(self):
            return shared_ray.get_runtime_context().get_actor_id()

        def crash(self):
            os._exit(1)

    crashed, killed, alive = Actor.remote(), Actor.remote(), Actor.remote()
    names = shared_ray.get([actor.name.remote() for actor in (crashed, killed, alive)])
    crashed.crash.remote()
    shared_ray.kill(killed)
    deadline = time.monotonic() + 20
    while [died_by_itself(name) for name in names] != [True, False, False]:
        assert time.monotonic() < deadline, [died_by_itself(name) for name in names]
        time.sleep(0.1)
    assert died_by_itself("no such actor") is None


def test_one_node_without_an_autoscaler():
    from raydd.runtime._ray_private import configured_resources, is_single_node

    assert configured_resources() == {}
    assert is_single_node()


def test_a_cluster_tells_what_it_may_grow_to(monkeypatch):
    from raydd.runtime._ray_private import configured_resources, is_single_node

    monkeypatch.setenv("RAYDD_MAX_GPUS", "8")
    monkeypatch.setenv("RAYDD_MAX_CPUS", "")
    assert configured_resources() == {"GPU": 8.0}
    assert not is_single_node()


def test_there_is_no_deadline_outside_a_worker_group():
    from raydd.runtime._ray_private import preemption_deadline

    assert preemption_deadline() is None
