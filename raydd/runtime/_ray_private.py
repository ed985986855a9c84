"""The names of Ray that it does not promise to keep, each behind a function that degrades to "not available".

Last passed on Ray 2.60.0 (`tests/runtime/test_ray_private.py`).
"""

import os
import time

import ray


def data_parallel_trainer():
    """A trainer whose worker group has no torch process group (Ray 2.60: ray.train.v2.api.data_parallel_trainer).

    `TorchTrainer` does the same work with a process group that nobody uses.
    """
    try:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    except ImportError:
        from ray.train.torch import TorchTrainer as DataParallelTrainer
    return DataParallelTrainer


def lean(trainer: type, alone: bool) -> type:
    """`trainer` without the actors of a worker group that serve nothing here; as it is where Ray names them otherwise.

    Each takes two CPU seconds to start, for every group. One hands out the datasets of Ray Train, which is given none.
    The other frees what a group holds when its controller dies and the driver does not: on a Ray that is there for this
    driver `alone`, which ends with it, nobody else would want that.
    """
    idle = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if alone else set())

    class Lean(trainer):
        def _create_default_callbacks(self):
            return [part for part in super()._create_default_callbacks() if type(part).__name__ not in idle]

    return Lean


def preemption_deadline() -> float | None:
    """Seconds until this Train worker group is torn down, or None. Reads a private field; never raises."""
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        info = get_train_context().preemption_context.preemption_info
    except Exception:
        return None
    if info is None:
        return None
    return info.deadline_ms / 1000 - time.time() if info.deadline_ms else 120.0


def died_by_itself(actor: str) -> bool | None:
    """Whether an actor's process crashed or ran out of memory, rather than being killed with its group or its node.

    False as well while the actor lives; None where Ray does not tell.
    """
    try:
        from ray._private.state import actors
        from ray.core.generated.common_pb2 import ActorDiedErrorContext

        info = actors(actor)
        if info["State"] != "DEAD":
            return False
        cause = info["DeathCause"]
        kind = cause.WhichOneof("context")
        if kind == "oom_context":
            return True
        if kind != "actor_died_error_context":
            return None
        return cause.actor_died_error_context.reason == ActorDiedErrorContext.Reason.Value("WORKER_DIED")
    except Exception:
        return None


def configured_resources() -> dict[str, float]:
    """What the cluster may grow to by its autoscaler's configuration; {} where there is none.

    Ray's open-source autoscalers do not report theirs: the files in `cluster/` set RAYDD_MAX_CPUS and RAYDD_MAX_GPUS
    on the head, where the driver of a submitted job inherits them. Without these a cluster that has no GPU yet would
    never be asked for one.
    """
    try:
        from ray._private.state import state

        found = state.get_max_resources_from_cluster_config()
    except Exception:
        found = None
    told = {name: os.environ.get(f"RAYDD_MAX_{name}S") for name in ("CPU", "GPU")}
    numbers = {**(found or {}), **{name: count for name, count in told.items() if count}}
    return {name: float(count) for name, count in numbers.items()}


def is_single_node() -> bool:
    """Whether the cluster is one living node that no autoscaler can add to."""
    return sum(node["Alive"] for node in ray.nodes()) == 1 and not configured_resources()
