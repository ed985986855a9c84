"""What an evaluation leaves behind (`evaluation/<protocol>[+<labels>]-<student>.json`) and reading it back.

One file holds one student under one protocol: all student seeds on one distilled set. Accuracies are fractions; the
last step is the result, `best` is stored beside it and never ranks (evaluation.md, rule 1). An evaluation is stale when
the set has changed since: its revision differs from that of `dataset.json`.
"""

import dataclasses
import json
import math
import re
from typing import Any

from raydd.config import to_plain
from raydd.errors import UserError
from raydd.evaluate.fairness import Summary, summarize
from raydd.store import filesystem as files
from raydd.store.distilled import read_manifest
from raydd.store.plain import parse_json
from raydd.store.run import Run

FULL = "full"
RANDOM = "random"
# Label forms that go without saying: hard protocols have the one, soft ones the other.
USUAL_LABELS = ("hard", "online")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One student: accuracies in [0, 1], `per_class` nan for a class without images, `curve` as (step, top-1)."""

    seed: int
    last: float
    best: float
    top5: float
    per_class: list[float]
    curve: list[tuple[int, float]]
    steps: int
    images_seen: int = 0
    teacher_forwards: int = 0
    seconds: float = 0.0
    device: str = "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All students of one architecture, one protocol and one distilled set.

    `validation`: uri, fingerprint, count. `labels`: form, teacher, teacher_hash, teacher_top1, early. `bytes`: image,
    label, teacher.
    """

    protocol: dict[str, Any]
    protocol_hash: str
    student: str
    method: str
    ipc: int
    distill_seed: int
    revision: int
    validation: dict[str, Any]
    classes: list[str]
    labels: dict[str, Any]
    bytes: dict[str, int]
    versions: dict[str, str]
    seeds: list[SeedResult]

    @property
    def name(self) -> str:
        """The protocol's name."""
        return str(self.protocol.get("name", self.protocol_hash))

    @property
    def accuracies(self) -> dict[tuple[int, int], float]:
        """Last-step top-1 by (distillation seed, student seed)."""
        return {(self.distill_seed, result.seed): result.last for result in self.seeds}

    @property
    def summary(self) -> Summary:
        """Mean, deviation and number over student seeds."""
        return summarize(self.accuracies)

    def is_stale(self, manifest: dict[str, Any]) -> bool:
        """Whether the distilled set has changed since."""
        return self.revision != manifest.get("revision")


@dataclasses.dataclass(frozen=True)
class RunResults:
    """A run with what it recorded: run.json, dataset.json, and its evaluations by file name."""

    run: Run
    record: dict[str, Any]
    manifest: dict[str, Any]
    evaluations: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        """Last part of the run's URI."""
        return self.run.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def method(self) -> str:
        return str(self.manifest.get("method", "unknown"))

    @property
    def ipc(self) -> int:
        return int(self.manifest.get("ipc") or 0)

    @property
    def seed(self) -> int:
        return int(self.manifest.get("seed") or 0)

    @property
    def source_name(self) -> str:
        """Last part of the source's URI."""
        uri = str(self.manifest.get("source", {}).get("uri", "the source"))
        return uri.rstrip("/").rsplit("/", 1)[-1] or uri


def file_name(protocol: str, student: str, labels: str) -> str:
    """Name of the evaluation's file; stored labels (patch, single, views) are named: a set may be judged by several.

    What no filesystem should see in a name becomes `_`.
    """
    stored = "" if labels in USUAL_LABELS else f"+{labels}"
    return re.sub(r"[^\w.+-]+", "_", f"{protocol}{stored}-{student}") + ".json"


def write_evaluation(run: Run, evaluation: Evaluation) -> str:
    """Write the evaluation with its mean, std and n for readers of the bare file; return the file's URI."""
    summary = evaluation.summary
    plain = to_plain(evaluation) | dataclasses.asdict(summary)
    uri = run.path("evaluation", file_name(evaluation.name, evaluation.student, str(evaluation.labels["form"])))
    files.write_atomic(uri, json.dumps(_no_nan(plain), indent=1, allow_nan=False).encode())
    return uri


def read_evaluations(run: Run) -> tuple[Evaluation, ...]:
    """Every evaluation of a run, by file name; () if there is none. Raises `UserError` naming a file it cannot read."""
    folder = run.path("evaluation")
    names = [name for name in files.list_files(folder) if name.endswith(".json") and "/" not in name]
    return tuple(_read(files.join(folder, name)) for name in names)


def read_results(run: Run) -> RunResults:
    """The run's records; raises `UserError` if there is no run or no distilled set."""
    return RunResults(run, run.read(), read_manifest(run), read_evaluations(run))


def _read(uri: str) -> Evaluation:
    try:
        plain = parse_json(files.read_bytes(uri))
        plain["seeds"] = [read_seed(seed) for seed in plain["seeds"]]
        return Evaluation(**_known(Evaluation, plain))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{uri} is no evaluation ({error}): remove it and run 'raydd evaluate' again") from error


def read_seed(plain: dict[str, Any]) -> SeedResult:
    """One student's result from plain JSON values."""
    plain = _known(SeedResult, plain)
    plain["per_class"] = [math.nan if value is None else value for value in plain["per_class"]]
    plain["curve"] = [tuple(point) for point in plain["curve"]]
    return SeedResult(**plain)


def _known(kind: type, plain: dict[str, Any]) -> dict[str, Any]:
    """Only the fields of `kind`: a newer raydd may write more."""
    return {f.name: plain[f.name] for f in dataclasses.fields(kind) if f.name in plain}


def _no_nan(value: Any) -> Any:
    """JSON has no nan: null."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
