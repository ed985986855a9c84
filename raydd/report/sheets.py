"""Contact sheets: the distilled images themselves, a row per class, the origin of each in its tooltip.

Every image is decoded and encoded again, so that nothing but pixels reaches the page; large ones become thumbnails. A
sheet shows at most `MOST_CLASSES` classes and as many images of each as fit; it says what it leaves out.
"""

import base64
import io
from collections import Counter

from PIL import Image

from raydd.evaluate.record import RunResults
from raydd.report.facts import bytes_text
from raydd.report.html import Html, details, el, join
from raydd.store import distilled
from raydd.store.distilled import DistilledImage

MOST_CLASSES = 20
WIDTH = 930
GAP = 4
# Up to this many pixels an image is shown enlarged, pixel by pixel.
SMALL = 48


def contact_sheet(result: RunResults, label: str, *, open_: bool = False) -> Html | None:
    """The sheet of one run under the name `label`; None if the run holds no images."""
    manifest = result.manifest
    present = [i for i, name in enumerate(manifest["classes"]) if manifest["counts"].get(name)]
    if not present:
        return None
    size = shown_size(int(manifest.get("size") or 64))
    room = WIDTH // (size + GAP)
    shown = present[:MOST_CLASSES]
    origins: Counter[str] = Counter()
    lines = []
    for i in shown:
        images = distilled.read_class(result.run, i)
        origins.update(image.origin for image in images)
        lines.append(_line(manifest["classes"][i], images, room, size))
    most = max(manifest["counts"].values())
    left_out = [f"first {room} of {most} images"] * (most > room)
    left_out += [f"first {len(shown)} of {len(present)} classes"] * (len(present) > len(shown))
    title = join([label, " ", el("span", f"IPC {result.ipc}, seed {result.seed}: {_facts(manifest, left_out)}")])
    note = el("p", f"{_origins(origins)}. Hold the pointer over an image to see where it came from.", class_="note")
    return details(title, el("div", *lines, class_="sheet"), note, open_=open_)


def shown_size(size: int) -> int:
    """Side in CSS pixels of an image of `size` pixels."""
    return 44 if size <= SMALL else 64 if size <= 96 else 88


def _line(name: str, images: list[DistilledImage], room: int, size: int) -> Html:
    found = (thumbnail(image.data, size, f"{name}, {image.origin}", origin_text(image)) for image in images[:room])
    return el("div", el("div", name, title=name), *found, class_="class")


def thumbnail(data: bytes, size: int, alt: str, title: str | None = None) -> Html:
    """An encoded image `size` CSS pixels wide and high, decoded and encoded again; blank for broken bytes."""
    source, small = _encode(data, size)
    return el("img", src=source, width=size, height=size, alt=alt, title=title, class_="small" if small else None)


def origin_text(image: DistilledImage) -> str:
    """Kind of the image, then one line per source: key, box, score."""
    lines = [image.origin]
    for i, key in enumerate(image.source_keys):
        box = f"  box {', '.join(map(str, image.boxes[i]))}" if i < len(image.boxes) else ""
        score = f"  score {image.scores[i]:.4g}" if i < len(image.scores) else ""
        lines.append(f"{key}{box}{score}")
    return "\n".join(lines)


def _encode(data: bytes, size: int) -> tuple[str, bool]:
    """Data URI of the pixels, at most twice the shown size; whether it is shown enlarged. Broken bytes give ''."""
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return "", False
    sink = io.BytesIO()
    if max(picture.size) <= SMALL:
        picture.save(sink, "PNG")
        return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}", True
    picture.thumbnail((2 * size, 2 * size), Image.Resampling.LANCZOS)
    picture.save(sink, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}", False


def _facts(manifest: dict, left_out: list[str]) -> str:
    return ", ".join([f"{manifest['images']:,} images, {bytes_text(manifest['image_bytes'])}", *left_out])


def _origins(origins: Counter[str]) -> str:
    return "Origin of the images: " + ", ".join(f"{count:,} {origin}" for origin, count in sorted(origins.items()))
