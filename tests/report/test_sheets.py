"""A sheet shows the pixels that are stored, with their origin, and says what it leaves out."""

import base64
import io
import re

import numpy as np
from PIL import Image
from synthetic_runs import CLASSES, digit, make_run, png

from raydd.evaluate.record import read_results
from raydd.report.sheets import MOST_CLASSES, contact_sheet, origin_text
from raydd.store import distilled
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run


def shown(html: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in data]


def one_class(tmp_path, images, classes=("a",), size=32):
    run = Run(str(tmp_path / "run"))
    run.begin("distill", {}, seed=0)
    for label in range(len(classes)):
        distilled.commit_class(run, label, classes, images)
    distilled.write_manifest(run, list(classes), method="m", ipc=len(images), seed=0, size=size)
    return contact_sheet(read_results(run), "m")


def test_small_images_are_shown_pixel_by_pixel(tmp_path):
    run = make_run(str(tmp_path / "run"), "random", 2, 0)
    html = contact_sheet(read_results(run), "random", open_=True)
    pixels = shown(html)
    assert len(pixels) == 20 and html.startswith("<details open>")
    for i, image in enumerate(pixels):
        assert (image == np.asarray(Image.open(io.BytesIO(digit(i // 2, i % 2))))).all()
    assert all(f'title="{name}"' in html for name in CLASSES)
    assert "20 real" in html and "first" not in html


def test_large_images_are_thumbnails(tmp_path):
    big = png(np.full((300, 400, 3), 200, np.uint8))
    html = one_class(tmp_path, [DistilledImage(big, "real", ("k",))], size=400)
    (pixels,) = shown(html)
    assert max(pixels.shape) == 176 and "pixelated" not in html and abs(int(pixels.mean()) - 200) <= 1


def test_tooltips_name_sources_boxes_and_scores(tmp_path):
    image = DistilledImage(digit(0, 0), "mosaic", ("a/<x>.png", "b"), ((0, 1, 2, 3), (4, 5, 6, 7)), (1.5, 0.25))
    assert origin_text(image) == "mosaic\na/<x>.png  box 0, 1, 2, 3  score 1.5\nb  box 4, 5, 6, 7  score 0.25"
    assert "a/&lt;x&gt;.png" in one_class(tmp_path, [image])


def test_what_does_not_fit_is_said(tmp_path):
    images = [DistilledImage(digit(1, i), "synthetic", ()) for i in range(30)]
    html = one_class(tmp_path, images, classes=[f"c{i}" for i in range(MOST_CLASSES + 5)])
    room = 930 // 48
    assert f"first {room} of 30 images" in html and f"first {MOST_CLASSES} of {MOST_CLASSES + 5} classes" in html
    assert len(shown(html)) == room * MOST_CLASSES and "synthetic" in html


def test_bytes_that_are_no_image_leave_a_blank(tmp_path):
    html = one_class(tmp_path, [DistilledImage(b"<svg onload=alert(1)>", "real", ("k",))])
    assert 'src=""' in html and "onload" not in html


def test_a_run_without_images_has_no_sheet(tmp_path):
    run = make_run(str(tmp_path / "run"), "full", 1, 0)
    assert contact_sheet(read_results(run), "full") is None
