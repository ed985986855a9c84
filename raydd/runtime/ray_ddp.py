"""One large student or prior over several workers: `TorchTrainer` (nccl on GPUs, else gloo), with its own snapshot.

A worker that dies restarts the group, and `train` goes on from the snapshot that the unit keeps itself. An error that
the user can mend is not tried again.
"""

from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch

from raydd.errors import UserError
from raydd.runtime import cluster
from raydd.runtime.ray_units import open_queue
from raydd.runtime.storage import train_storage
from raydd.runtime.work import Resources, Ticker, describe, one_line, raise_unfinished, settle

MAX_FAILURES = 3


class Shared(Protocol):
    """A unit that several ranks run together."""

    name: str

    def is_done(self) -> bool: ...

    def train(self, device: str, rank: int, world: int) -> Any: ...

    def commit(self, result: Any) -> None: ...


def train_together(unit: Shared, world: int, resources: Resources, storage: str, what: str = "student") -> None:
    """Train one unit as a process group of `world` workers; its own files prove that it is done.

    `storage` is a directory or URI that all nodes reach; `what` names the work to the user. Raises `UserError` if the
    cluster has no room for `world` workers, or for what the unit raised.
    """
    resources.check()
    cluster.connect()
    places, each, gpu = cluster.worker_count(Resources(threads=resources.threads), world)
    if places < world:
        kind = "GPUs" if gpu else f"workers of {resources.threads} CPU thread(s)"
        raise UserError(f"--ddp {world}: the cluster has room for {places} {kind}; use --ddp {places}")
    ticker = Ticker(what, 1)
    with open_queue({unit.name: 1.0}, ticker, lambda *event: None) as (name, queue):
        trainer = cluster.trainer(ray.train.torch.TorchTrainer)(
            _rank,
            train_loop_config={"queue": name, "threads": resources.threads, "unit": ray.put(unit)},
            scaling_config=ray.train.ScalingConfig(num_workers=world, use_gpu=gpu, resources_per_worker=each),
            run_config=ray.train.RunConfig(
                name=name,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                **train_storage(storage),
            ),
        )
        try:
            with cluster.cause():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            reason = one_line(error)[:300]
            raise UserError(f"{what} {unit.name!r} failed {MAX_FAILURES + 1} times: {reason}") from error
        failures = ray.get(queue.failed.remote())
    raise_unfinished(what, failures, [] if failures or unit.is_done() else [unit.name])


def _rank(config: dict[str, Any]) -> None:
    queue = ray.get_actor(config["queue"])
    device = settle(config["threads"])
    if ray.get(queue.failed.remote()):
        return  # a former group met an error that another try would meet again
    unit, context = ray.get(config["unit"]), ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        result = unit.train(str(ray.train.torch.get_device()) if device == "cuda" else device, rank, world)
    except UserError as error:
        ray.get(queue.fail.remote(unit.name, describe(error)))
        raise  # the other ranks may wait for this one: only the restart of the group frees them
    if rank == 0:
        unit.commit(result)
        ray.get(queue.finish.remote(unit.name))
    ray.train.report({})
