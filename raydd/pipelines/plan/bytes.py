"""Bytes that a distillation will write: the set, score tables or latents, what was learned, and half-done states.

Numbers in tables are counted before compression. The size of an encoded image is measured on images of the source, or
guessed; synthetic ones may differ.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch

from raydd.distill.infoutil.config import CropConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import Prepared
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.job import Job
from raydd.pipelines.ld3m import Ld3m
from raydd.pipelines.pack_unit import PackUnit
from raydd.pipelines.plan.cost import Stage, feature_count, rows_of, saving
from raydd.pipelines.plan.dsco import net_shape
from raydd.pipelines.synthetic import open_prior

# Shares of 3 bytes per pixel that an image takes, where none was measured.
GUESSES = {"png": 0.7, "jpeg95": 0.3, "jpeg75": 0.12}
# A class's Parquet file beside its images: schema and footer, and an image's facts.
FILE, ROW = 5000, 40
FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Written:
    """Bytes of one kind; `lasting`: they are there when the run has ended. `how` tells where the number is from."""

    what: str
    size: int
    how: str
    lasting: bool = True


def guessed_image(codec: str, size: int) -> float:
    """Bytes of an encoded image, without having seen one."""
    return GUESSES[codec] * 3 * size * size


def written(
    prepared: Prepared, left: Sequence[tuple[PackUnit, list[int]]], found: Sequence[Stage], image_bytes: float | None
) -> list[Written]:
    """Everything that the stages will write for the units and classes `left`; `image_bytes` of one encoded image, None
    to guess it."""
    items = _images(left, image_bytes) + _half_done([unit for unit, _ in left]) if left else []
    if prepared.table is not None:
        items.append(_table(prepared, found[0]))
    return [item for item in items if item.size]


def _images(left: Sequence[tuple[PackUnit, list[int]]], image_bytes: float | None) -> list[Written]:
    unit, classes = left[0][0], sum(len(labels) for _, labels in left)
    job, method = unit.job, unit.method
    how = "counted, at a size measured on images of the source"
    if image_bytes is None:
        how = "guessed"
        image_bytes = guessed_image(saving(job, method).of.split()[0], job.size)
    found = [Written("distilled images", round(classes * (FILE + job.ipc * (image_bytes + ROW))), how)]
    if unit.label_teacher is not None:
        tiles = method.factor(job.size) ** 2 if method.output.labels == "patch" else 1
        size = 2 * classes * job.ipc * tiles * unit.label_teacher.load().info.outputs
        found.append(Written("soft labels", size, "counted"))
    if isinstance(method, Ld3m):
        found.append(Written("what was learned", classes * job.ipc * _learned(method, job), "counted"))
    return found


def _table(prepared: Prepared, stage: Stage) -> Written:
    job, method = prepared.job, prepared.units[0].method
    images = rows_of([part.work for part in stage.parts], "read")
    if isinstance(method, Dsco):
        numbers = 2 * math.prod(open_prior(job, "cpu").latent_shape)
    elif isinstance(method, InfoUtil):
        numbers = crop_row(method.config.at(job.size).crop)
    else:
        assert isinstance(method, Control)
        numbers = 2 * feature_count(job)
    size = round(images * (numbers + FLOAT + _key_bytes(job)))
    return Written(stage.name, size, "at most: before compression")


def crop_row(crop: CropConfig) -> int:
    """Bytes of an image's crops and scores, key and label apart."""
    windows = (crop.grid - crop.window + 1) ** 2
    ids, boxes, size = crop.crops, windows, 0
    if crop.crop_from == "shapley":
        size = FLOAT * (windows + 2 + (crop.grid**2 if crop.estimator != "windows" else 0))
        ids = 1 if crop.alpha == 0 else crop.crops
    elif crop.crop_from == "random_resized":
        boxes = crop.crops
    elif crop.crop_from == "full":
        ids = boxes = 1
    return size + ids + (FLOAT + 1) * boxes


def _key_bytes(job: Job, sample: int = 1000) -> float:
    keys = job.source.index()["key"][:sample].to_pylist()
    return sum(len(key) + FLOAT for key in keys) / len(keys)


def _half_done(units: list[PackUnit]) -> list[Written]:
    """States of the largest unit, which every worker may hold at once."""
    method, job = units[0].method, units[0].job
    classes = max(len(unit.labels) for unit in units)
    if isinstance(method, Dsco):
        size = _dsco_state(method, job)
    elif isinstance(method, Ld3m):
        size = _ld3m_state(method, job, classes)
    else:
        return []
    return [Written("half-done state, per worker", size, "at most; deleted when its classes are committed", False)]


def _dsco_state(method: Dsco, job: Job) -> int:
    prior = open_prior(job, "cpu")
    size = FLOAT * job.ipc * math.prod(prior.latent_shape)
    if method.nopt.access == "free":
        size += 2 * FLOAT * method.nopt.steps * net_shape(prior, method.nopt)
    return size


def _learnables(method: Ld3m, job: Job) -> tuple[int, int]:
    """Numbers of one image's latent and condition."""
    if method.learn.generator == "pixels":
        return 3 * job.size**2, 0
    prior = open_prior(job, "cpu")
    latent = math.prod(prior.latent_shape)
    if prior.num_classes is None or not method.learn.steps:
        return latent, 0
    return latent, prior.conditions(torch.tensor([0])).numel()


def _ld3m_state(method: Ld3m, job: Job, classes: int) -> int:
    kept = 1 if method.learn.optimizer == "sgd" else 2
    numbers = sum(count * (1 + kept * learned) for count, learned in zip(_learnables(method, job), method.learn.learns))
    return FLOAT * classes * job.ipc * numbers + 2 * FLOAT * method.learn.iterations


def _learned(method: Ld3m, job: Job) -> int:
    """float16 latents and conditions, and the pictures before: uint8 at the working size."""
    pictures = 1 + (method.learn.init != "gaussian")
    return 2 * sum(_learnables(method, job)) + pictures * 3 * job.size**2
