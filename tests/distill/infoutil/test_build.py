"""From a score table to images: every tile is the window it says, labels are the teacher's, and misfits are named."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from raydd.data.decode import decode_image
from raydd.distill.encode import resize
from raydd.distill.infoutil.build import build_class, table_crops
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig, rded
from raydd.distill.infoutil.crops import random_resized_boxes
from raydd.distill.infoutil.mosaic import cut
from raydd.distill.infoutil.scorer import CropScorer
from raydd.errors import UserError

SIZE, SEED = 16, 0


def score(folder, teacher, config: InfoUtilConfig, label: int, factor: int) -> pa.Table:
    """The score table of one class, as one unit."""
    keys = sorted(key for key, own in zip(*folder.index().to_pydict().values()) if own == label)
    images = np.stack([decode_image(record.data, SIZE) for record in folder.read(keys)])
    scorer = CropScorer(teacher, config.crop, classes=folder.classes, size=SIZE, factor=factor, seed=SEED, batch=8)
    return scorer(images, [label] * len(keys), keys)


def build(folder, teacher, config: InfoUtilConfig, ipc: int, label: int = 1, **changes):
    factor = config.tile_factor(SIZE)
    table = score(folder, teacher, config, label, factor)
    labels = teacher if config.select.labels in ("patch", "single") else None
    options = {"label": label, "ipc": ipc, "size": SIZE, "seed": SEED, "teacher": labels} | changes
    return build_class(folder, table, config, **options)


def pixels_of(data: bytes) -> torch.Tensor:
    return torch.tensor(np.asarray(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def original(folder, key: str) -> torch.Tensor:
    (record,) = folder.read([key])
    return torch.tensor(decode_image(record.data, SIZE)).permute(2, 0, 1)


def tiles_of(image, factor: int) -> list[torch.Tensor]:
    side = SIZE // factor
    pixels = pixels_of(image.data)
    return [pixels[:, y : y + side, x : x + side] for y in range(0, SIZE, side) for x in range(0, SIZE, side)]


@pytest.mark.parametrize("factor", [1, 2])
def test_every_tile_is_the_window_that_it_records(folder, make_teacher, factor):
    config = InfoUtilConfig(select=SelectConfig(factor=factor))
    images = build(folder, make_teacher(), config, ipc=2)
    assert len(images) == 2
    for image in images:
        assert len(image.source_keys) == len(image.boxes) == len(image.scores) == factor**2
        for tile, key, box in zip(tiles_of(image, factor), image.source_keys, image.boxes):
            assert torch.equal(tile, cut(original(folder, key), box, SIZE // factor))
            assert key.startswith("bee/")
    ranked = [value for image in images for value in image.scores]
    assert ranked == sorted(ranked, reverse=True)
    assert len({key for image in images for key in image.source_keys}) == 2 * factor**2


def test_rded_from_pixels_to_order(folder, make_teacher):
    """A loop that knows nothing of score tables: lowest loss per image, ascending, dealt in strides."""
    teacher = make_teacher()
    config = dataclasses.replace(rded(), select=dataclasses.replace(rded().select, factor=2))
    images = build(folder, teacher, config, ipc=2)
    found = []
    for key in (f"bee/{i}.png" for i in range(9)):
        boxes = random_resized_boxes(SIZE, 2, "bee", key, 5, SEED)
        tiles = torch.stack([cut(original(folder, key), box, 8) for box in boxes])
        x = torch.nn.functional.pad(teacher.normalize(tiles), (4, 4, 4, 4))
        losses = torch.nn.functional.cross_entropy(teacher.model(x), torch.ones(5, dtype=torch.int64), reduction="none")
        found.append((float(losses.min()), key, tuple(boxes[int(losses.argmin())].tolist())))
    ranked = [(key, box) for _, key, box in sorted(found)[:8]]
    dealt = [[ranked[t * 2 + j] for t in range(4)] for j in range(2)]
    assert [list(zip(image.source_keys, image.boxes)) for image in images] == dealt


def test_patch_labels_are_the_teacher_on_each_tile(folder, make_teacher):
    teacher = make_teacher()
    config = InfoUtilConfig(select=SelectConfig(factor=2, labels="patch"))
    for image in build(folder, teacher, config, ipc=2):
        stored = torch.tensor(image.soft_label).view(4, 3)
        wanted = teacher.logits(resize(torch.stack(tiles_of(image, 2)), SIZE)).half().float()
        assert torch.equal(stored, wanted)


def test_single_labels_are_the_teacher_on_the_mosaic(folder, make_teacher):
    teacher = make_teacher()
    config = InfoUtilConfig(select=SelectConfig(factor=2, labels="single"))
    for image in build(folder, teacher, config, ipc=1):
        assert torch.equal(
            torch.tensor(image.soft_label), teacher.logits(pixels_of(image.data)[None]).half().float()[0]
        )
    assert build(folder, teacher, InfoUtilConfig(), ipc=1)[0].soft_label is None


def test_other_noise_needs_all_windows_scored(folder, make_teacher):
    config = InfoUtilConfig()
    table = score(folder, make_teacher(), config, 1, 1)
    with pytest.raises(UserError, match=r"crop \d of 'bee/\d.png' has no score: score again"):
        table_crops(table, "bee", CropConfig(alpha=5.0, crops=9), size=SIZE, factor=1, seed=SEED)
    complete = score(folder, make_teacher(), InfoUtilConfig(crop=CropConfig(score_all_windows=True)), 1, 1)
    assert table_crops(complete, "bee", CropConfig(alpha=5.0, crops=9), size=SIZE, factor=1, seed=SEED)


def test_too_few_images(folder, make_teacher):
    with pytest.raises(
        UserError, match=r"class 'bee' has 9 scored images and needs 12: use a lower --ipc, a higher --mipc"
    ):
        build(folder, make_teacher(), InfoUtilConfig(select=SelectConfig(factor=2)), ipc=3)
    with pytest.raises(UserError, match=r"class 'bee' has 0 scored images"):
        build_class(folder, None, InfoUtilConfig(), label=1, ipc=1, size=SIZE, seed=0, teacher=None)


def test_an_image_that_broke_after_scoring(folder, tmp_path, make_teacher):
    table = score(folder, make_teacher(), InfoUtilConfig(), 1, 1)
    for path in (tmp_path / "set" / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="was scored but cannot be read now"):
        build_class(folder, table, InfoUtilConfig(), label=1, ipc=2, size=SIZE, seed=SEED, teacher=None)


@pytest.mark.parametrize("shape", [(16, 16), (3, 5, 3)])
def test_grey_and_tiny_images_are_used(folder, tmp_path, make_teacher, shape):
    for path in (tmp_path / "set" / "bee").iterdir():
        Image.fromarray(np.full(shape, 77, np.uint8)).save(path)
    (image,) = build(folder, make_teacher(), InfoUtilConfig(select=SelectConfig(factor=2)), ipc=1)
    assert (pixels_of(image.data) == 77).all()
