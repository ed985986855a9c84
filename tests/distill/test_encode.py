"""PNG keeps every pixel, JPEG stays near, equal pixels give equal bytes, and sizes come out as asked."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from raydd.distill.encode import encode, resize, resolve_codec
from raydd.errors import UserError
from raydd.keyed import numpy_rng


def picture(size: int = 32) -> torch.Tensor:
    """A smooth image with some noise, uint8 [3,size,size]."""
    x = torch.linspace(0, 255, size)
    smooth = torch.stack([x.expand(size, size), x.expand(size, size).T, 255 - x.expand(size, size)])
    noise = torch.from_numpy(numpy_rng("encode").normal(0, 3, (3, size, size)))
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def decode(data: bytes) -> torch.Tensor:
    return torch.tensor(np.asarray(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def test_png_is_lossless_even_for_a_strided_view():
    image = picture().flip(2).transpose(1, 2)
    assert torch.equal(decode(encode(image, "png")), image)


@pytest.mark.parametrize(("codec", "error"), [("jpeg95", 3.0), ("jpeg75", 9.0)])
def test_jpeg_is_near(codec, error):
    difference = (decode(encode(picture(), codec)).float() - picture().float()).abs().mean()
    assert 0 < difference < error


def test_quality_is_ordered():
    assert len(encode(picture(), "jpeg75")) < len(encode(picture(), "jpeg95")) < len(encode(picture(), "png"))


def test_jpeg95_keeps_color_at_full_resolution():
    with Image.open(io.BytesIO(encode(picture(), "jpeg95"))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("codec", ["png", "jpeg95", "jpeg75"])
def test_equal_pixels_give_equal_bytes(codec):
    assert encode(picture(), codec) == encode(picture().clone(), codec)


def test_auto_is_lossless_for_small_images():
    assert [resolve_codec("auto", size) for size in (32, 64, 65, 224)] == ["png", "png", "jpeg95", "jpeg95"]
    assert resolve_codec("jpeg75", 32) == "jpeg75"
    with pytest.raises(UserError, match="unknown codec 'jpg'"):
        resolve_codec("jpg", 32)


def test_resize_rounds_and_clamps():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, :, :, 4:] = 255
    wanted = F.interpolate(images.double(), size=(16, 16), mode="bicubic", antialias=True)
    assert wanted.min() < 0 and wanted.max() > 255
    assert torch.equal(resize(images, 16), wanted.round().clamp(0, 255).to(torch.uint8))
    assert resize(images, 8) is images
