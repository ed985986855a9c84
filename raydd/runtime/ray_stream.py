"""Scores on Ray Data: read tasks that also decode, and a fixed pool of scoring actors, with backpressure in between.

One read task per shard, and one row per shard on the way to an actor, so that no block is ever cut or merged with
another, and memory is bounded by a few shards however large the source is. Actors are restarted and shards retried by
Ray without limit, so a lost node costs the shards in flight. What was committed is left out before the stream starts:
resuming reads nothing twice (Ray Data's own checkpoint would read all input again and drop known rows).
"""

import functools
from collections.abc import Callable, Sequence

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raydd.data.source import SourceUnit
from raydd.errors import UserError
from raydd.runtime import cluster
from raydd.runtime.stream import ScoreStream, decode_unit
from raydd.runtime.work import Resources, settle


class UnitSource(Datasource):
    """One read task, and one row, per shard of the listing, decoded at `size`."""

    def __init__(self, units: Sequence[SourceUnit], size: int) -> None:
        super().__init__()
        self.units, self.size = units, size

    def estimate_inmemory_data_size(self) -> int:
        return sum(unit.n for unit in self.units) * 3 * self.size**2

    def get_read_tasks(self, parallelism: int, per_task_row_limit=None, data_context=None) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(_read, unit, self.size),
                BlockMetadata(num_rows=1, size_bytes=unit.n * 3 * self.size**2, input_files=None, exec_stats=None),
            )
            for unit in self.units
        ]


def _read(unit: SourceUnit, size: int) -> list[pa.Table]:
    return [pack(decode_unit(unit, size))]


def pack(table: pa.Table) -> pa.Table:
    """A table as the one value of another, in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = pa.Array.from_buffers(pa.large_binary(), 1, [None, _offsets(sink.tell()), sink.getvalue()])
    return pa.table({"shard": value})


def _offsets(length: int) -> pa.Buffer:
    return pa.array([0, length], pa.int64()).buffers()[1]


def unpack(table: pa.Table) -> pa.Table:
    """The table inside a packed one, without a copy."""
    return pa.ipc.open_stream(table["shard"][0].as_buffer()).read_all()


class ScoreActor:
    """A pool member: weights are loaded once, then shards are scored and committed."""

    def __init__(self, stream: ScoreStream, threads: int) -> None:
        self.error: UserError | None = None
        try:
            self.score = stream.open(settle(threads))
        except UserError as error:  # raised later: Ray prints what a constructor raises, and tries it again
            self.error = error

    def __call__(self, packed: pa.Table) -> pa.Table:
        if self.error is not None:
            raise self.error
        return self.score(unpack(packed))


def stream_scores(
    stream: ScoreStream, units: Sequence[SourceUnit], resources: Resources, on_unit: Callable[[dict], None]
) -> None:
    """Score all units on the cluster; `on_unit` gets each unit's row of statistics as it is committed."""
    if not units:
        return
    cluster.connect()
    count, each, gpu = cluster.worker_count(resources, len(units))
    # An actor that holds a GPU asks for no CPU (left out, Ray takes one), so that the pool leaves some to read with.
    # Without GPUs both stages share the CPUs: actors ask for half of what they use and read tasks for a quarter. One
    # more of these runs than there are cores, so that none waits for the next to be submitted; many more make Ray warn.
    cpus = {"read": 1.0, "score": 0.0} if gpu else {"read": each["CPU"] / 4, "score": each["CPU"] / 2}
    most = None if gpu else count + 1
    source = UnitSource(units, stream.size)
    with DataContext.current(_context()), cluster.cause():
        decoded = ray.data.read_datasource(
            source, override_num_blocks=len(units), num_cpus=cpus["read"], concurrency=most
        )
        rows = decoded.map_batches(
            ScoreActor,
            fn_constructor_args=(stream, resources.threads),
            batch_size=1,
            batch_format="pyarrow",
            # Two calls at once: one scores, the other commits (`UnitScorer`).
            compute=ActorPoolStrategy(size=count, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True),
            num_cpus=cpus["score"],
            num_gpus=each.get("GPU"),
        )
        rows.set_name("raydd_scores")
        for row in rows.iter_rows():
            on_unit(row)


def _context() -> DataContext:
    """A copy of the process's context: slow scores must not be taken for a hang (the default kills after 30 min)."""
    context = DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    # Verbose per-operator lines belong in the session's log, not in a job's.
    context.print_on_execution_start = False
    return context
