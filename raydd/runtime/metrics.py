"""Ray metrics of a job, made of the same events that `events.jsonl` keeps; every process of ours publishes its own.

    raydd_units_total{stage}    shards scored, classes committed, students and experts trained
    raydd_images_total{stage}   images scored or distilled: images per second are `rate(raydd_images_total[1m])`
    raydd_retries_total         units that were begun again after their worker was lost
    raydd_failures_total        units that were given up

Ray exports them on each node (`MetricsExportPort`, `/metrics`) for Prometheus and its dashboard, under a prefix `ray_`.
The files stay the truth: a metric that cannot be published never disturbs the work.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter

from raydd.store import events
from raydd.store.progress import FINISHED

ABOUT = {
    "raydd_units_total": "Units done: shards, classes, students, experts.",
    "raydd_images_total": "Images scored or distilled.",
    "raydd_retries_total": "Units begun again after their worker was lost.",
    "raydd_failures_total": "Units given up.",
}
STAGES = ("raydd_units_total", "raydd_images_total")


def watch() -> None:
    """Publish what this process appends to events from now on; to be called in every process, once or more."""
    events.listen(publish)


def publish(event: str, facts: Mapping[str, Any]) -> None:
    """Count one event. Never raises."""
    with contextlib.suppress(Exception):
        if event in FINISHED:
            stage = {"stage": FINISHED[event]}
            _counter("raydd_units_total").inc(1, stage)
            if images := int(facts.get("images", 0)):
                _counter("raydd_images_total").inc(images, stage)
        elif event == "unit_retried":
            _counter("raydd_retries_total").inc()
        elif event == "unit_failed":
            _counter("raydd_failures_total").inc()


@functools.cache
def _counter(name: str) -> Counter:
    return Counter(name, ABOUT[name], ("stage",) if name in STAGES else ())
