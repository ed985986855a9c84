"""A class's score table to its distilled images (InfoUtil, steps 6 to 9). Seconds per class; no gradients."""

import math
from collections.abc import Sequence

import pyarrow as pa
import torch

from raydd.data.source import Source
from raydd.distill.assemble import open_images, stored_logits
from raydd.distill.encode import encode, resolve_codec
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig
from raydd.distill.infoutil.crops import crop_boxes
from raydd.distill.infoutil.mosaic import arrange, compose, cut
from raydd.distill.infoutil.select import Crop, select
from raydd.errors import UserError
from raydd.models.teacher import Teacher
from raydd.store.distilled import DistilledImage


def table_crops(
    table: pa.Table, class_name: str, config: CropConfig, *, size: int, factor: int, seed: int
) -> list[Crop]:
    """Every distinct crop of every image in a class's score table.

    Crops are drawn again from heat and keys, not read: a table with all windows scored serves any alpha and seed.
    Raises `UserError` naming the scoring step when a crop that is needed was never scored.
    """
    crops = []
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "shapley"}
    for i, key in enumerate(columns["key"]):
        heat = columns["heat"][i] if "heat" in columns else None
        ids, boxes = crop_boxes(config, size, factor, class_name, key, seed, heat)
        for j in sorted(set(ids.tolist())):
            score = columns["crop_scores"][i][j]
            if math.isnan(score):
                raise UserError(
                    f"crop {j} of {key!r} has no score: score again with these crop options (--force), "
                    "or once for all with --score-all-windows"
                )
            box = tuple(int(edge) for edge in boxes[j])
            crops.append(Crop(key, box, score, bool(columns["crop_correct"][i][j]), clean=j == int(ids[-1])))
    return crops


def build_class(
    source: Source,
    table: pa.Table,
    config: InfoUtilConfig,
    *,
    label: int,
    ipc: int,
    size: int,
    seed: int,
    teacher: Teacher | None,
) -> list[DistilledImage]:
    """The `ipc` distilled images of one class; `teacher` makes stored labels and is None for online and hard ones."""
    factor, name = config.tile_factor(size), source.classes[label]
    need = factor * factor * ipc
    if table is None or table.num_rows < need:
        have = 0 if table is None else table.num_rows
        raise UserError(
            f"class {name!r} has {have} scored images and needs {need}: "
            "use a lower --ipc, a higher --mipc, or --factor 1"
        )
    crops = table_crops(table, name, config.crop, size=size, factor=factor, seed=seed)
    chosen = select(crops, need, config.select)
    pixels = open_images(source, [crop.key for crop in chosen], size)
    if gone := sorted({crop.key for crop in chosen} - pixels.keys()):
        raise UserError(f"{gone[0]!r} of class {name!r} was scored but cannot be read now: restore it, or use --force")
    codec = resolve_codec(config.select.codec, size)
    per_tile = config.select.labels == "patch"
    images = []
    for group in arrange(chosen, ipc, config.select.mosaic):
        tiles = torch.stack([cut(pixels[crop.key], crop.box, size // factor) for crop in group])
        image = compose(tiles, factor)
        images.append(_record(image, group, codec, stored_logits(teacher, tiles if per_tile else image[None], size)))
    return images


def _record(image: torch.Tensor, group: Sequence[Crop], codec: str, logits: tuple[float, ...] | None) -> DistilledImage:
    return DistilledImage(
        data=encode(image, codec),
        origin="mosaic",
        source_keys=tuple(crop.key for crop in group),
        boxes=tuple(crop.box for crop in group),
        scores=tuple(crop.score for crop in group),
        soft_label=logits,
    )
