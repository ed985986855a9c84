"""Several runs in one comparison: blocks in which rows may be ranked, rows that gather distillation seeds.

A block holds results of one protocol hash, validation source, class list, student and label regime (form and teacher
hash); nothing is ever ranked across blocks, and within a block only rows of one IPC are (evaluation.md, section 10 and
rules 1, 3, 5). A row gathers the runs that differ by distillation seed alone; runs whose options differ are rows of
their own, named by what differs. Differences to `random` are paired over (distillation seed, student seed). A stale row
is shown and not ranked. `full`, the ceiling, is not ranked either.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from raydd.config import content_hash
from raydd.evaluate.fairness import Paired, Summary, paired_difference, summarize
from raydd.evaluate.record import FULL, RANDOM, Evaluation, RunResults

# What names a row already, so that it is no variant of the method's options.
_ROW_OPTIONS = ("seed", "ipc", "method", "base")
# The run whose images a run starts from, or the name of another kind of start.
_START = "options.learn.init"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one IPC in one block; `best` summarizes the best step, `rank` is None for what is not ranked.

    `sources` are the evaluations that were gathered, each with its run, by distillation seed.
    """

    method: str
    variant: str
    ipc: int
    stale: bool
    sources: tuple[tuple[RunResults, Evaluation], ...]
    vs_random: Paired | None = None
    rank: int | None = None

    @property
    def label(self) -> str:
        return f"{self.method} {self.variant}".strip()

    @property
    def is_full(self) -> bool:
        return self.method == FULL

    @property
    def images(self) -> int:
        """Images in the set (of the first distillation seed); 0 for `full`."""
        return int(self.sources[0][0].manifest.get("images", 0))

    @property
    def accuracies(self) -> dict[tuple[int, int], float]:
        return {key: value for _, evaluation in self.sources for key, value in evaluation.accuracies.items()}

    @property
    def summary(self) -> Summary:
        return summarize(self.accuracies)

    @property
    def best(self) -> Summary:
        seeds = ((e.distill_seed, result) for _, e in self.sources for result in e.seeds)
        return summarize({(seed, result.seed): result.best for seed, result in seeds})

    @property
    def steps(self) -> tuple[int, ...]:
        """Optimizer steps of the students; one number unless budgets differ."""
        return tuple(sorted({result.steps for _, e in self.sources for result in e.seeds}))


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows that share everything but the set: sorted by IPC, then by accuracy, with `full` last at each IPC.

    `notes` says in one sentence each what makes the rows less comparable than they look.
    """

    protocol: str
    protocol_hash: str
    student: str
    validation: dict[str, Any]
    labels: dict[str, Any]
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def ipcs(self) -> list[int]:
        return sorted({row.ipc for row in self.rows})

    def at(self, ipc: int) -> list[Row]:
        """Rows of one IPC."""
        return [row for row in self.rows if row.ipc == ipc]


@dataclasses.dataclass(frozen=True)
class Column:
    """Blocks of one protocol name, student, validation source and label regime, at different IPCs.

    Protocols fix epochs and batch by IPC, so each IPC has its own hash; no two blocks of a column share an IPC.
    """

    blocks: tuple[Block, ...]

    @property
    def first(self) -> Block:
        return self.blocks[0]

    @property
    def rows(self) -> list[Row]:
        return sorted((row for block in self.blocks for row in block.rows), key=lambda row: row.ipc)


def compare(results: Sequence[RunResults]) -> list[Block]:
    """The comparison of several runs: blocks sorted by protocol, student, labels and IPC. A run given twice counts
    once."""
    results = list({result.run.uri: result for result in results}.values())
    variants = variant_names(results)
    groups: dict[str, list[tuple[RunResults, Evaluation]]] = defaultdict(list)
    for result in results:
        for evaluation in result.evaluations:
            groups[_block_key(evaluation)].append((result, evaluation))
    blocks = [_block(group, variants) for group in groups.values()]
    return sorted(blocks, key=_block_order)


def columns(blocks: Iterable[Block]) -> list[Column]:
    """Blocks side by side over IPC: as few columns as possible, in the order of the blocks."""
    series: dict[str, list[list[Block]]] = defaultdict(list)
    for block in blocks:
        regime = [_regime(block.labels)[0], block.validation.get("fingerprint"), block.classes]
        lanes = series[content_hash([block.protocol, block.student, *regime])]
        free = (lane for lane in lanes if not any(set(block.ipcs) & set(other.ipcs) for other in lane))
        lane = next(free, None)
        if lane is None:
            lanes.append([block])
        else:
            lane.append(block)
    return [Column(tuple(lane)) for lanes in series.values() for lane in lanes]


def variant_names(results: Sequence[RunResults]) -> dict[str, str]:
    """By run URI: the options, as `name=value`, in which a run differs from others of its method and IPC; else ''."""
    groups: dict[tuple[str, int], list[RunResults]] = defaultdict(list)
    for result in results:
        groups[result.method, result.ipc].append(result)
    names = {}
    for group in groups.values():
        options = {result.run.uri: _options(result) for result in group}
        every = {name for option in options.values() for name in option}
        if _starts_follow_seeds(group, options):
            every -= {_START, "options.inputs"}
        differing = [name for name in sorted(every) if len({repr(option.get(name)) for option in options.values()}) > 1]
        for uri, option in options.items():
            names[uri] = " ".join(f"{name.rsplit('.', 1)[-1]}={option.get(name)}" for name in differing)
    return names


def _starts_follow_seeds(group: Sequence[RunResults], options: dict[str, dict[str, Any]]) -> bool:
    """Whether every run starts from another run, and each seed from one of its own: a chain of several seeds."""
    pairs = {(result.seed, str(options[result.run.uri].get(_START))) for result in group}
    seeds, starts = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(pairs) == len(seeds) == len(starts) and all("/" in start for start in starts)


def _options(result: RunResults) -> dict[str, Any]:
    config = result.record.get("config", {}).get("distill", {})
    return _leaves({name: value for name, value in config.items() if name not in _ROW_OPTIONS})


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _leaves(item, f"{path}.{name}" if path else name)
    return leaves


def _regime(labels: dict[str, Any]) -> tuple[Any, Any]:
    return labels.get("form"), labels.get("teacher_hash")


def _block_key(e: Evaluation) -> str:
    return content_hash([e.protocol_hash, e.validation.get("fingerprint"), e.student, _regime(e.labels), e.classes], 24)


def _block(group: list[tuple[RunResults, Evaluation]], variants: dict[str, str]) -> Block:
    gathered: dict[tuple, dict[int, tuple[RunResults, Evaluation]]] = defaultdict(dict)
    notes = []
    for result, evaluation in sorted(group, key=lambda pair: (pair[1].distill_seed, pair[0].run.uri)):
        stale = evaluation.is_stale(result.manifest)
        seeds = gathered[evaluation.method, variants[result.run.uri], evaluation.ipc, stale]
        if evaluation.distill_seed in seeds:
            notes.append(f"{result.name} repeats seed {evaluation.distill_seed} of {evaluation.method}: left out")
        seeds.setdefault(evaluation.distill_seed, (result, evaluation))
    rows = _ranked([Row(*key, sources=tuple(seeds.values())) for key, seeds in gathered.items()])
    first = group[0][1]
    return Block(
        protocol=first.name,
        protocol_hash=first.protocol_hash,
        student=first.student,
        validation=first.validation,
        labels=first.labels,
        classes=tuple(first.classes),
        rows=tuple(rows),
        notes=(*notes, *_differences(rows)),
    )


def _ranked(rows: list[Row]) -> list[Row]:
    """Rows in order, with ranks within their IPC and differences to the random row there."""
    rows = sorted(rows, key=lambda row: (row.ipc, row.is_full, row.stale, -row.summary.mean, row.label))
    ranks: Counter[int] = Counter()
    ranked = []
    for row in rows:
        rank = None
        if not row.is_full and not row.stale:
            ranks[row.ipc] += 1
            rank = ranks[row.ipc]
        ranked.append(dataclasses.replace(row, rank=rank, vs_random=_versus_random(row, rows)))
    return ranked


def _versus_random(row: Row, rows: Sequence[Row]) -> Paired | None:
    if row.stale or row.method == RANDOM:
        return None
    for other in rows:
        same = other.method == RANDOM and other.ipc == row.ipc and not other.stale
        if same and row.accuracies.keys() & other.accuracies.keys():
            return paired_difference(row.accuracies, other.accuracies)
    return None


def _differences(rows: Sequence[Row]) -> list[str]:
    """Rule 3: same steps and codec for every row of a table; and the same source, or the task is another."""
    notes = []
    for ipc in sorted({row.ipc for row in rows}):
        here = [row for row in rows if row.ipc == ipc and not row.stale]
        facts = {
            "optimizer steps": {row.label: row.steps for row in here},
            "image codec": {row.label: _codecs(row) for row in here if not row.is_full},
            "source": {row.label: _sources(row) for row in here},
        }
        for what, by_row in facts.items():
            if len(set(by_row.values())) > 1:
                listing = ", ".join(f"{label} {'/'.join(map(str, values))}" for label, values in by_row.items())
                notes.append(f"IPC {ipc}: rows differ in {what} ({listing})")
    return notes


def _codecs(row: Row) -> tuple[str, ...]:
    return tuple(sorted({str(result.manifest.get("codec")) for result, _ in row.sources}))


def _sources(row: Row) -> tuple[str, ...]:
    return tuple(sorted({str(result.manifest.get("source", {}).get("fingerprint")) for result, _ in row.sources}))


def _block_order(block: Block) -> tuple:
    regime = tuple(str(part) for part in _regime(block.labels))
    return block.protocol, block.student, str(block.validation.get("uri")), regime, block.ipcs, block.protocol_hash
