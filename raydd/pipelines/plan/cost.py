"""What a distillation will do, counted before anything is done: images read, forwards, backwards, images written.

A stage is a list of parts that run side by side, shards of a stream or units of a queue; a part is amounts of
operations. Counts follow the code that runs, padding of batches and the checks of a fresh worker included, as if every
image could be read. Where a count depends on the images themselves it is the most it can be, and the stage's notes say
so. What each method does stands in `controls.py`, `infoutil.py`, `dsco.py` and `ld3m.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from raydd.distill.encode import resolve_codec
from raydd.models.registry import classifier_layer
from raydd.pipelines.distill import Prepared
from raydd.pipelines.job import Job
from raydd.pipelines.method import Method
from raydd.pipelines.pack_unit import PackUnit
from raydd.pipelines.score import UNIT_ROWS, Table
from raydd.store import scores

# What a row of an operation is. Those of CPU are not computed on an accelerator.
KINDS = {
    "read": "images read and decoded",
    "encode": "images through the prior's encoder",
    "denoise": "denoiser forwards",
    "denoise_back": "denoiser backwards",
    "paint": "prior's decoder forwards",
    "paint_back": "prior's decoder backwards",
    "target": "noised real images through the feature net",
    "nopt": "feature net, forward and backward",
    "feature": "feature net forwards",
    "map": "templates through the feature net",
    "nopt_free": "feature net's maps, forward and backward",
    "game": "teacher forwards of Shapley games",
    "cut": "crops cut and resized",
    "teacher": "teacher forwards",
    "gradnorm": "gradient norms (about 3 forwards each)",
    "choose": "candidates x centers, clustered",
    "match_net": "matching networks made",
    "match_real": "real images through the matcher",
    "match": "images matched, with gradients",
    "match_held": "images matched, held out",
    "student": "images of student steps, with gradients",
    "student_held": "images of student steps, held out",
    "save": "images encoded",
}
CPU = frozenset({"read", "choose", "save"})


@dataclasses.dataclass(frozen=True, order=True)
class Op:
    """An operation: its kind, and what it is done with or at, on which its seconds depend."""

    kind: str
    of: str


@dataclasses.dataclass(frozen=True)
class Amount:
    """`rows` in `calls`: a call is what runs at once, a row one image of it (both halves of guidance count)."""

    calls: int
    rows: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.calls + other.calls, self.rows + other.rows)


Work = Mapping[Op, Amount]


def add(works: Sequence[Work]) -> dict[Op, Amount]:
    """The sum of amounts, operation by operation."""
    total: dict[Op, Amount] = {}
    for work in works:
        for op, amount in work.items():
            total[op] = total[op] + amount if op in total else amount
    return total


def times(work: Work, count: int) -> dict[Op, Amount]:
    """The same work `count` times."""
    return {op: Amount(amount.calls * count, amount.rows * count) for op, amount in work.items()}


def batches(count: int, batch: int) -> int:
    """How many batches hold `count` rows."""
    return -(-count // batch)


def rows_of(works: Sequence[Work], *kinds: str) -> int:
    """Rows of these kinds in all."""
    return sum(amount.rows for work in works for op, amount in work.items() if op.kind in kinds)


@dataclasses.dataclass(frozen=True)
class Part:
    """What is scheduled at once: a shard, or the unit of one or several classes."""

    name: str
    work: Work


@dataclasses.dataclass(frozen=True)
class Stage:
    """Parts that are left to do, and how many are done. `streamed`: reading goes on beside computing.

    `once` is what every worker does before its first part.
    """

    name: str
    parts: tuple[Part, ...]
    done: int = 0
    streamed: bool = False
    once: Work = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def total(self, workers: int = 1) -> dict[Op, Amount]:
        """The work of all parts, on so many workers."""
        return add([self._parts_work, times(self.once, workers)])

    @functools.cached_property
    def _parts_work(self) -> Work:
        return add([part.work for part in self.parts])


@dataclasses.dataclass(frozen=True)
class Counting:
    """How the work of one method is counted on a device.

    shard(images): the work on a shard beside reading it; pack(labels): the work on classes that are made together,
    labels and saving apart. The others as in `Stage`.
    """

    shard: Callable[[int], Work]
    pack: Callable[[tuple[int, ...]], Work]
    shard_once: Work = dataclasses.field(default_factory=dict)
    once: Work = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shard_notes: tuple[str, ...] = ()


def units_left(prepared: Prepared) -> list[tuple[PackUnit, list[int]]]:
    """The units of a checked request that it would run, and the classes of each that it would make."""
    fresh = prepared.force or not prepared.run.exists()
    found = []
    for unit in prepared.units:
        again = [label for label in unit.wanted if label in prepared.redo]
        if labels := list(unit.wanted) if fresh else sorted({*unit.left(), *again}):
            found.append((unit, labels))
    return found


def stages(prepared: Prepared, units: Sequence[PackUnit], counting: Counting) -> list[Stage]:
    """The stages of a checked request of which `units` are left: scores or latents, if it needs them, and classes."""
    parts = []
    for unit in units:
        finish = times(_finish(unit.job, unit.method, unit.label_teacher is not None), len(unit.labels))
        parts.append(Part(unit.key, add([counting.pack(unit.labels), finish])))
    done = len(prepared.units) - len(parts)
    classes = Stage("classes", tuple(parts), done, False, counting.once if parts else {}, counting.notes)
    return [classes] if prepared.table is None else [_table(prepared.table, counting), classes]


def _table(table: Table, counting: Counting) -> Stage:
    units = table.job.source.units(UNIT_ROWS, keys=table.scoring.keys)
    fresh = table.force or not table.run.exists()
    committed = set() if fresh else scores.committed_units(table.run)
    left = [unit for unit in units if unit.name not in committed]
    work = functools.cache(lambda images: {reading(table.size): Amount(1, images), **counting.shard(images)})
    parts = tuple(Part(unit.name, work(unit.n)) for unit in left)
    once = counting.shard_once if parts else {}
    return Stage(table.scoring.folder, parts, len(units) - len(left), True, once, counting.shard_notes)


def _finish(job: Job, method: Method, labeled: bool) -> Work:
    """Images of one class labeled, where labels are stored, and encoded."""
    work = {saving(job, method): Amount(job.ipc, job.ipc)}
    if labeled:
        tiles = method.factor(job.size) ** 2 if method.output.labels == "patch" else 1
        work[teacher_op(job)] = Amount(job.ipc, job.ipc * tiles)
    return work


def saving(job: Job, method: Method) -> Op:
    """Encoding a distilled image."""
    return Op("save", f"{resolve_codec(method.output.codec, job.size)} at {job.size} px")


def reading(size: int) -> Op:
    """Reading and decoding at a size."""
    return Op("read", f"{size} px")


def teacher_op(job: Job, kind: str = "teacher", size: int | None = None) -> Op:
    """A pass of the job's teacher at a size; None is the working size."""
    precision = f" {job.precision}" if kind == "game" else ""
    return Op(kind, f"teacher {job.teacher_hash} at {size or job.size} px{precision}")


def feature_count(job: Job) -> int:
    """Numbers that the job's teacher knows an image by."""
    return classifier_layer(job.teacher.load().model)[1].weight.shape[1]
