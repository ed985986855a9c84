"""The decoded set is sorted by key whatever the threads and the layout; broken images are dropped and listed."""

import pytest
import torch
from small_set import layout_files, write_files

from raydd.data.decode import decode_image
from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.errors import UserError


@pytest.fixture
def source(tmp_path):
    return open_source(write_files(tmp_path, layout_files("imagefolder")))


def test_rows_are_the_decoded_images_in_key_order(source):
    loaded = load_images(source, 16, resize=20)
    assert loaded.images.shape == (12, 3, 16, 16) and loaded.images.dtype == torch.uint8
    assert list(loaded.keys) == sorted(source.index()["key"].to_pylist())
    for i, record in enumerate(source.read(list(loaded.keys))):
        expected = torch.from_numpy(decode_image(record.data, 16, resize=20).copy()).permute(2, 0, 1)
        assert torch.equal(loaded.images[i], expected)
        assert loaded.labels[i] == record.label


def test_threads_do_not_change_the_result(source):
    one, four = load_images(source, 16, threads=1), load_images(source, 16, threads=4)
    assert torch.equal(one.images, four.images)
    assert one.keys == four.keys


def test_chosen_keys_only(source):
    loaded = load_images(source, 16, keys=["dog/1.png", "bee/2.png"])
    assert loaded.keys == ("bee/2.png", "dog/1.png")
    assert loaded.labels.tolist() == [0, 2]


def test_broken_images_are_dropped_and_listed(tmp_path):
    contents = layout_files("imagefolder")
    broken = {"bee/0.png": b"", "cat/1.png": b"text", "dog/2.png": contents["dog/2.png"][:-500]}
    loaded = load_images(open_source(write_files(tmp_path, contents | broken)), 16)
    assert dict(loaded.dropped) == {
        "bee/0.png": "empty or unreadable file",
        "cat/1.png": "not an image",
        "dog/2.png": "truncated",
    }
    assert len(loaded) == len(loaded.images) == 9
    whole = load_images(open_source(write_files(tmp_path / "whole", contents)), 16)
    kept = [i for i, key in enumerate(whole.keys) if key in loaded.keys]
    assert torch.equal(loaded.images, whole.images[kept])
    assert torch.equal(loaded.labels, whole.labels[kept])


def test_nothing_decodable_and_too_much_memory(tmp_path, source):
    broken = open_source(write_files(tmp_path / "broken", dict.fromkeys(layout_files("imagefolder"), b"x")))
    with pytest.raises(UserError, match="none of 12 images can be decoded"):
        load_images(broken, 16)
    with pytest.raises(UserError, match="choose a smaller image size"):
        load_images(source, 16, limit_bytes=1000)
