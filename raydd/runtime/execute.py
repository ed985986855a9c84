"""One signature, two executors: `--executor ray` or `local`. Ray is imported only where it is used."""

from collections.abc import Callable, Sequence

from raydd.data.source import SourceUnit
from raydd.runtime import local
from raydd.runtime.stream import ScoreStream
from raydd.runtime.work import OnEvent, Resources, Unit


def run_units(
    units: Sequence[Unit], resources: Resources, what: str, *, storage: str, on_event: OnEvent | None = None
) -> None:
    """Run the units that are not done; `Unfinished` names what failed after the others finished.

    `storage` is a directory or URI that all nodes reach, for Ray Train's own state; `on_event` is told of units that
    fail or are tried again.
    """
    resources.check()
    if resources.executor == "local":
        local.run_units(units, resources, what, on_event)
    else:
        from raydd.runtime import ray_units

        ray_units.run_units(units, resources, what, on_event, storage=storage)


def stream_scores(
    stream: ScoreStream, units: Sequence[SourceUnit], resources: Resources, on_unit: Callable[[dict], None]
) -> None:
    """Score the shards; `on_unit` gets each shard's statistics as it is committed."""
    resources.check()
    if resources.executor == "local":
        local.stream_scores(stream, units, resources, on_unit)
    else:
        from raydd.runtime import ray_stream

        ray_stream.stream_scores(stream, units, resources, on_unit)
