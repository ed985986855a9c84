"""Crops of a decoded batch: the planted object is found, scores are those of a plain loop, batches do not matter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.distill.encode import resize
from raydd.distill.infoutil.config import CropConfig
from raydd.distill.infoutil.crops import random_resized_boxes, window_boxes
from raydd.distill.infoutil.scorer import CropScorer, check_native, show_tile
from raydd.errors import UserError
from raydd.keyed import numpy_rng

CLASSES = ("ant", "bee", "cat")
COUNT = 11


class Brightness(nn.Module):
    """Logit of class k is the brightness of channel k: whatever is bright is the object."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(3))

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def batch():
    """Images uint8 [n,16,16,3], labels and keys."""
    images = numpy_rng("scorer").integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    return images, [i % 3 for i in range(COUNT)], [f"{i}.png" for i in range(COUNT)]


def scorer(teacher, factor: int = 2, batch: int = 4, seed: int = 0, **switches) -> CropScorer:
    return CropScorer(teacher, CropConfig(**switches), classes=CLASSES, size=16, factor=factor, seed=seed, batch=batch)


def column(table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist())


@pytest.mark.parametrize("estimator", ["border_windows", "windows", "captum", "paired"])
def test_clean_crop_holds_the_planted_object(make_teacher, estimator):
    spots = [(x, y) for x in (0, 5, 12) for y in (0, 7, 13)]
    images = np.full((9, 16, 16, 3), 90, np.uint8)
    labels = [i % 3 for i in range(9)]
    for image, label, (x, y) in zip(images, labels, spots):
        image[y : y + 3, x : x + 3, label] = 255
    teacher = make_teacher(model=Brightness())
    table = scorer(teacher, estimator=estimator)(images, labels, [f"{i}" for i in range(9)])
    boxes = window_boxes(16, 4, 2)[column(table, "crop_ids")[:, -1]]
    for (left, top, right, bottom), (x, y), image in zip(boxes, spots, images):
        # Patches of 4 px: the window with most of the object inside.
        inside = (image[top:bottom, left:right] == 255).sum()
        best = max((image[y0:y1, x0:x1] == 255).sum() for x0, y0, x1, y1 in window_boxes(16, 4, 2))
        assert inside == best > 0, (x, y)


@pytest.mark.parametrize("score", ["gradnorm", "gradnorm_last", "el2n", "ce"])
@pytest.mark.parametrize("factor", [1, 2])
def test_scores_are_those_of_a_loop_over_single_crops(batch, make_teacher, score, factor):
    """Batch one, autograd, torch's own cross-entropy; the same crops by hand."""
    images, labels, keys = batch
    teacher = make_teacher()
    table = scorer(teacher, factor, score=score, crop_from="random_resized")(images, labels, keys)
    scores, correct = column(table, "crop_scores"), column(table, "crop_correct")
    for i, key in enumerate(keys):
        boxes = random_resized_boxes(16, factor, CLASSES[labels[i]], key, 5, 0)
        for j, (left, top, right, bottom) in enumerate(boxes):
            crop = torch.tensor(images[i]).permute(2, 0, 1)[None, :, top:bottom, left:right]
            x = teacher.normalize(resize(crop, 16 // factor))
            x = x if factor == 1 else F.pad(x, (4, 4, 4, 4))
            wanted, right_class = single(teacher.model, x, labels[i], score)
            np.testing.assert_allclose(scores[i, j], wanted, rtol=2e-4, atol=1e-6)
            assert correct[i, j] == right_class


def single(model: nn.Module, x: torch.Tensor, label: int, score: str) -> tuple[float, bool]:
    """Score of one image by autograd."""
    model.requires_grad_(True)
    logits = model(x)
    error = (logits.detach().softmax(1) - F.one_hot(torch.tensor([label]), 3)).norm()
    loss = F.cross_entropy(logits, torch.tensor([label]))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    over = list(last.parameters()) if score == "gradnorm_last" else list(model.parameters())
    grads = torch.autograd.grad(loss, over)
    model.requires_grad_(False)
    right = bool(logits.argmax() == label)
    if score == "ce":
        return loss.item(), right
    if score == "el2n":
        return float(error), right
    return float(torch.cat([g.flatten() for g in grads]).norm()), right


def test_only_crops_of_the_image_are_scored_unless_all_are_asked_for(batch, make_teacher):
    table = scorer(make_teacher())(*batch)
    ids, scores = column(table, "crop_ids"), column(table, "crop_scores")
    for picked, row in zip(ids, scores):
        assert set(np.flatnonzero(~np.isnan(row))) == set(picked)
    everything = column(scorer(make_teacher(), score_all_windows=True)(*batch), "crop_scores")
    assert not np.isnan(everything).any()
    np.testing.assert_allclose(everything[~np.isnan(scores)], scores[~np.isnan(scores)], rtol=1e-5)


def test_random_scores_are_even_and_keyed(batch, make_teacher):
    table = scorer(make_teacher(), score="none", crop_from="random_window", crops=1)(*batch)
    again = scorer(make_teacher(), score="none", crop_from="random_window", crops=1, seed=1)(*batch)
    scores = column(table, "crop_scores")
    assert ((scores[~np.isnan(scores)] >= 0) & (scores[~np.isnan(scores)] < 1)).all()
    assert not np.array_equal(scores, column(again, "crop_scores"), equal_nan=True)


@pytest.mark.parametrize("estimator", ["border_windows", "captum"])
def test_order_and_split_of_the_images_change_nothing(batch, make_teacher, estimator):
    images, labels, keys = batch
    whole = scorer(make_teacher(), estimator=estimator)(images, labels, keys)
    back = scorer(make_teacher(), estimator=estimator)(images[::-1].copy(), labels[::-1], keys[::-1])
    halves = [scorer(make_teacher(), estimator=estimator)(images[s], labels[s], keys[s]) for s in HALVES]
    for name in ("crop_ids", "crop_scores", "crop_correct"):
        np.testing.assert_array_equal(column(whole, name), column(back, name)[::-1])
        np.testing.assert_array_equal(column(whole, name), np.concatenate([column(half, name) for half in halves]))


HALVES = (slice(0, 4), slice(4, COUNT))


def test_another_batch_size_moves_nothing_but_low_bits(batch, make_teacher):
    small, large = (scorer(make_teacher(), batch=size)(*batch) for size in (8, 64))
    np.testing.assert_allclose(column(small, "heat"), column(large, "heat"), atol=1e-5)
    np.testing.assert_array_equal(column(small, "crop_ids"), column(large, "crop_ids"))
    np.testing.assert_allclose(column(small, "crop_scores"), column(large, "crop_scores"), rtol=1e-4)


def test_another_seed_draws_other_crops(batch, make_teacher):
    tables = [scorer(make_teacher(), seed=seed)(*batch) for seed in (0, 1)]
    ids = [column(table, "crop_ids") for table in tables]
    assert not np.array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0][:, -1], ids[1][:, -1])


def test_read_only_pixels_are_taken_without_a_warning(batch, make_teacher, recwarn):
    images, labels, keys = batch
    frozen = np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape)
    assert scorer(make_teacher())(frozen, labels, keys).num_rows == COUNT
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_how_a_tile_is_shown():
    tiles = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    padded = show_tile(tiles, 8, "padded")
    assert padded.shape == (2, 3, 8, 8) and torch.equal(padded[:, :, 1:6, 1:6], tiles)
    assert padded.abs().sum() == tiles.abs().sum()
    resized = show_tile(tiles, 8, "resized")
    wanted = F.interpolate(tiles, size=(8, 8), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(resized, wanted)
    assert show_tile(tiles, 8, "native") is tiles
    assert all(show_tile(tiles, 5, how) is tiles for how in ("padded", "resized"))


def test_native_tiles_need_global_pooling(make_teacher):
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    check_native(make_teacher(), 8)
    check_native(make_teacher(model=fixed), 16)
    with pytest.raises(UserError, match="cannot look at bare tiles of 8 px: use --score-input padded"):
        check_native(make_teacher(model=fixed), 8)
