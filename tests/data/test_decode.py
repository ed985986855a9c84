"""Decoding equals Pillow's plain resize and crop; odd and broken files give the right picture or the reason."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from small_set import image_bytes

from raydd.data.decode import BadImage, decode_image, decode_table
from raydd.keyed import numpy_rng


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width, height):
    return Image.fromarray(numpy_rng("noise", width, height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width] / 25
    return Image.fromarray((128 + 100 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)).astype(np.uint8))


def resized_then_cropped(image, size, short):
    """What torchvision's Resize and CenterCrop do with a Pillow image, in their own arithmetic."""
    width, height = image.size
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2.0), round((new[1] - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("width", "height"), [(50, 37), (37, 50), (20, 31), (64, 64), (101, 500), (7, 300)])
@pytest.mark.parametrize(("size", "short"), [(32, 32), (32, 40), (16, 24)])
def test_one_resampling_call_is_resize_then_crop(width, height, size, short):
    image = smooth(width, height)
    got = decode_image(encode(image), size, resize=short).astype(int)
    assert np.abs(got - resized_then_cropped(image, size, short)).max() <= 2


def test_image_of_the_working_size_is_untouched():
    image = noise(32, 32)
    np.testing.assert_array_equal(decode_image(encode(image), 32), np.asarray(image))


def test_extreme_shape_needs_no_huge_intermediate():
    image = Image.new("RGB", (1, 1_000_000), "red")
    assert (decode_image(encode(image), 8) == [255, 0, 0]).all()


def test_large_jpeg_decoded_small_stays_close():
    image = smooth(1600, 1200)
    got = decode_image(encode(image, "JPEG", quality=95), 32).astype(int)
    assert np.abs(got - resized_then_cropped(image, 32, 32)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that makes the stored, wrongly turned image
    upright = smooth(24, 24)
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encode(stored, exif=exif), 24), np.asarray(upright))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_ignored():
    data = encode(smooth(24, 24), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data, 24).shape == (24, 24, 3)


def test_grey_is_repeated_and_16_bits_keep_the_upper_byte():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey)), 16), np.repeat(grey[..., None], 3, 2))
    deep = encode(Image.fromarray(grey.astype(np.uint16) * 256 + 7))
    np.testing.assert_array_equal(decode_image(deep, 16), np.repeat(grey[..., None], 3, 2))


def test_transparency_is_laid_over_white():
    layer = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (decode_image(encode(layer), 4) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (abs(decode_image(encode(half), 4).astype(int) - 127) <= 1).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (decode_image(encode(palette), 4) == [0, 0, 255]).all()
    assert (decode_image(encode(palette, transparency=1), 4) == 255).all()


def test_cmyk_and_one_bit():
    cmyk = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert (abs(decode_image(cmyk, 8).astype(int) - [255, 0, 0]) < 12).all()
    assert (decode_image(encode(Image.new("1", (8, 8), 1)), 8) == 255).all()


def huge_png(width, height):
    """A valid header that promises width x height pixels, and next to no data behind it."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    "empty": (b"", "empty or unreadable file"),
    "text": (b"<html>404</html>", "not an image"),
    "truncated jpeg": (image_bytes(1, kind="JPEG")[:-300], "truncated"),
    "truncated png": (image_bytes(1)[:-300], "truncated"),
    "header only": (image_bytes(1, kind="JPEG")[:20], ""),
    "large": (huge_png(9000, 9000), "too large: 9000x9000 pixels"),
    "bomb": (huge_png(100_000, 100_000), "too large: 10000000000 pixels"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "float": (encode(Image.new("F", (8, 8)), "TIFF"), "32-bit float image: its value range is unknown"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_give_a_reason(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(BadImage) as error:
        decode_image(data, 16)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_random_damage_never_raises_anything_else(kind):
    data = bytearray(image_bytes(2, kind=kind))
    rng = numpy_rng("damage", kind)
    for _ in range(60):
        hurt = bytearray(data)
        for at in rng.integers(0, len(hurt), 8):
            hurt[at] = rng.integers(0, 256)
        with contextlib.suppress(BadImage):
            assert decode_image(bytes(hurt), 16).shape == (16, 16, 3)


def test_resize_below_the_crop_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="at least the crop size"):
        decode_image(image_bytes(1), 32, resize=16)


def test_table_keeps_positions_and_lists_the_broken():
    good = image_bytes(3)
    table = pa.table({"key": ["a", "b", "c"], "bytes": pa.array([good, b"", good], pa.large_binary())})
    images, kept, dropped = decode_table(table, 16)
    assert images.shape == (2, 16, 16, 3)
    assert kept.tolist() == [0, 2]
    assert dropped == [("b", "empty or unreadable file")]
    np.testing.assert_array_equal(images[1], decode_image(good, 16))
