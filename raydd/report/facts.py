"""The report's plain facts per run: what was dropped, bytes, time, configuration and versions."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from raydd.evaluate.record import RunResults
from raydd.report.html import Html, details, el, join, table
from raydd.store.run import Run
from raydd.store.scores import read_dropped

FIRST_KEYS = 5
MOST_UNFOLDED = 4
# Runs by (label, IPC), in order of their distillation seed.
Groups = dict[tuple[str, int], list[RunResults]]


def dropped_part(results: Sequence[RunResults]) -> Html | None:
    """Counts of dropped images by reason, with the first keys."""
    rows = []
    # Runs may share a table of scores: its images were dropped once, whoever uses it.
    tables = {result.manifest.get("scores") or result.run.uri: result.name for result in results}
    listed = {name: read_dropped(Run(uri)) for uri, name in tables.items()}
    for name in _distinct(listed):
        reasons: dict[str, list[str]] = defaultdict(list)
        for key, reason in listed[name]:
            reasons[reason].append(key)
        for reason, keys in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
            more = ", ..." if len(keys) > FIRST_KEYS else ""
            rows.append((name, f"{len(keys):,}", reason, ", ".join(keys[:FIRST_KEYS]) + more))
    if not rows:
        return el("p", "No image was dropped.", class_="note")
    return table(("run", "images", "reason", "first keys"), rows, class_="left")


def _distinct(listed: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The first run of each distinct list: tables over the same images drop the same ones."""
    first = {tuple(pairs): name for name, pairs in reversed(listed.items())}
    return [name for name in listed if name in first.values()]


def bytes_part(groups: Groups) -> Html | None:
    """Images, labels and teacher in bytes, all that a student needs (evaluation.md, rule 8): means over the runs."""
    rows = []
    for (label, ipc), results in groups.items():
        images = _mean(result.manifest.get("images", 0) for result in results)
        if images:
            image = _mean(result.manifest["image_bytes"] for result in results)
            stored = _mean(result.manifest["label_bytes"] for result in results)
            teacher = max((e.bytes.get("teacher") or 0 for r in results for e in r.evaluations), default=0)
            sizes = (bytes_text(size) for size in (image, stored, teacher, image + stored + teacher))
            rows.append((label, ipc, f"{images:,.0f}", *sizes, f"{image / images:,.0f} B"))
    heads = ("method", "IPC", "images", "image bytes", "label bytes", "teacher", "all", "per image")
    note = "Means over runs. The teacher counts where students need it to make labels while they train."
    return join([table(heads, rows), el("p", note, class_="note")]) if rows else None


def bytes_text(size: float) -> str:
    """`48.1 kB`, in powers of 1000."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def timings_part(groups: Groups) -> Html | None:
    """Wall-clock seconds per stage and per student: means over the runs that recorded them."""
    rows = []
    for (label, ipc), results in groups.items():
        students = [seed for result in results for e in result.evaluations for seed in e.seeds]
        spent = (seconds_text(_stage_mean(results, stage, "seconds")) for stage in ("score", "distill", "evaluate"))
        scored = _stage_mean(results, "score", "images")
        each = seconds_text(_mean(seed.seconds for seed in students) if students else None)
        devices = ", ".join(sorted({seed.device for seed in students})) or "-"
        images = "-" if scored is None else f"{scored:,.0f}"
        rows.append((label, ipc, len(results), images, *spent, len(students), each, devices))
    heads = ("method", "IPC", "runs", "images scored", "score", "distill", "evaluate", "students", "each", "device")
    note = "Seconds per run, and per student; a stage that another run did for this one is not counted."
    return join([table(heads, rows), el("p", note, class_="note")]) if rows else None


def _stage_mean(results: Sequence[RunResults], stage: str, fact: str) -> float | None:
    found = [result.record.get("stages", {}).get(stage, {}).get(fact) for result in results]
    known = [value for value in found if value is not None]
    return _mean(known) if known else None


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def seconds_text(seconds: float | None) -> str:
    """`-`, `3.2 s`, `4.1 min` or `2.0 h`."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def configuration_part(results: Sequence[RunResults]) -> Html:
    """run.json, dataset.json without its hashes, and the protocols, folded away."""
    parts = [_configuration(result) for result in results]
    if len(parts) > MOST_UNFOLDED:
        parts = [details(f"{len(parts)} runs", *parts)]
    protocols = {e.protocol_hash: e.protocol for result in results for e in result.evaluations}
    for digest, protocol in sorted(protocols.items(), key=lambda item: (str(item[1].get("name")), item[0])):
        title = join([f"protocol {protocol.get('name', digest)} ", el("span", digest)])
        parts.append(details(title, _json(protocol)))
    return join(parts)


def _configuration(result: RunResults) -> Html:
    versions = result.record.get("versions", {})
    listing = " ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    title = join([f"{result.name} ", el("span", f"raydd {result.record.get('raydd')}, {listing}")])
    set_facts = {name: value for name, value in result.manifest.items() if name not in ("hashes", "counts", "classes")}
    return details(title, _json(result.record), _json(set_facts))


def _json(value: object) -> Html:
    return el("pre", json.dumps(value, indent=2, ensure_ascii=False))
