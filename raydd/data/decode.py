"""From the bytes of one image file to a square RGB array at the working size, or the reason why not.

Broken files are normal input: a bad image is a `BadImage` with a short reason, for the caller to drop, count and list.

Decisions.
- The shorter side is resized to `resize` (bicubic, antialiased), then the center is cropped (InfoUtil step 1, which
  fixes what its paper leaves open), with torchvision's roundings. It is one resampling call over the crop's box in the
  original, so that no image shape can make a huge intermediate; where Pillow then runs its two passes in the other
  order, sharp edges differ a little from `Resize` followed by `CenterCrop`.
- EXIF orientation is applied. Transparency is laid over white (ours: the color below a transparent pixel is arbitrary).
  Grey is repeated, CMYK converted without color profiles, 16-bit grey keeps its upper byte.
- The header is read first; more than `max_pixels` is refused before any pixel is decoded.
- Large JPEGs are decoded at 1/2, 1/4 or 1/8 while that still leaves twice the wanted side (a few times faster).

Limits. The first frame of an animation counts. 32-bit float images are refused: they have no fixed range.
"""

import io
import re

import numpy as np
import pyarrow as pa
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# A closed list: some of Pillow's other readers start external programs (EPS) or are rarely fuzzed.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image that cannot be used; the message is a short reason."""


def decode_image(data: bytes, size: int, *, resize: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image file to uint8 RGB [size, size, 3].

    `resize` (default `size`, never below it) is the length the shorter side gets before the center crop. Raises
    `BadImage` for empty, foreign, truncated, corrupt or oversized files.
    """
    short = size if resize is None else resize
    if not 1 <= size <= short:
        raise ValueError(f"resize {short} must be at least the crop size {size}, and that at least 1")
    if not data:
        raise BadImage("empty or unreadable file")
    try:
        return _decode(data, size, short, max_pixels)
    except BadImage:
        raise
    except Exception as error:  # Pillow's parsers raise many types on hostile bytes
        raise BadImage(_reason(error)) from error


def decode_table(
    table: pa.Table, size: int, *, resize: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Decode the `bytes` column of a unit's table (columns key, bytes).

    Returns uint8 [n, size, size, 3] of the good images, their int64 row positions [n], and (key, reason) of the others.
    """
    images = np.empty((table.num_rows, size, size, 3), np.uint8)
    kept: list[int] = []
    dropped: list[tuple[str, str]] = []
    for row, (key, data) in enumerate(zip(table["key"], table["bytes"], strict=True)):
        try:
            images[len(kept)] = decode_image(data.as_py(), size, resize=resize)
            kept.append(row)
        except BadImage as error:
            dropped.append((key.as_py(), str(error)))
    return images[: len(kept)], np.array(kept, np.int64), dropped


def _decode(data: bytes, size: int, short: int, max_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage(f"too large: {width}x{height} pixels")
        orientation = _orientation(image)
        image.draft(None, (2 * short, 2 * short))
        rgb = _to_rgb(image)
    if orientation in ORIENTATIONS:
        rgb = rgb.transpose(ORIENTATIONS[orientation])
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC, box=_crop_box(*rgb.size, size, short))
    return np.asarray(rgb)


def _crop_box(width: int, height: int, size: int, short: int) -> tuple[float, float, float, float]:
    shorter = min(width, height)
    sides = []
    for length in (width, height):
        resized = int(short * length / shorter)
        start = round((resized - size) / 2.0)
        sides.append((start * length / resized, (start + size) * length / resized))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_byte(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise BadImage("32-bit float image: its value range is unknown")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _upper_byte(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit integer image: its value range is unknown")
    return (values >> 8).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        size = re.search(r"\d+ pixels", text)
        return f"too large: {size.group() if size else text}"
    return f"cannot decode: {' '.join(text.split())[:120] or type(error).__name__}"
