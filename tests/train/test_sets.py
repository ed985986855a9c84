"""A training set is the same in whatever order it was listed."""

import pytest
import torch

from raydd.train.sets import TrainSet, ValSet


def content():
    images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    return images, torch.tensor([0, 1, 2, 3]), ["c", "a", "d", "b"], torch.arange(4.0).view(4, 1, 1)


def test_rows_are_in_key_order():
    images, labels, keys, soft = content()
    train = TrainSet(images, labels, keys, 1, soft)
    assert train.keys == ["a", "b", "c", "d"] and train.labels.tolist() == [1, 3, 0, 2]
    assert torch.equal(train.images[0], images[1]) and train.soft_labels.flatten().tolist() == [1, 3, 0, 2]


def test_fingerprint_ignores_order_but_not_content():
    images, labels, keys, soft = content()
    first = TrainSet(images, labels, keys).fingerprint()
    order = [3, 1, 0, 2]
    assert TrainSet(images[order], labels[order], [keys[i] for i in order], 1, soft).fingerprint() == first
    assert TrainSet(images, labels.flip(0), keys).fingerprint() != first
    assert TrainSet(images + 1, labels, keys).fingerprint() != first


def test_whole_images_follow_their_keys_and_are_part_of_the_fingerprint():
    images, labels, keys, _ = content()
    train = TrainSet(images, labels, keys, 2, whole=torch.tensor([True, False, False, True]))
    assert train.whole.tolist() == [False, True, True, False]
    prints = {TrainSet(images, labels, keys, 2, whole=w).fingerprint() for w in (None, train.whole, ~train.whole)}
    assert len(prints) == 3


@pytest.mark.parametrize("keys", [["a", "b", "c"], ["a", "b", "c", "c"]])
def test_bad_keys_are_refused(keys):
    images, labels, _, _ = content()
    with pytest.raises(ValueError, match="keys"):
        TrainSet(images, labels, keys)


def test_val_batches_cover_everything_once():
    images, labels, _, _ = content()
    parts = list(ValSet(images, labels).batches(3))
    assert [len(p[0]) for p in parts] == [3, 1] and torch.equal(torch.cat([p[1] for p in parts]), labels)
