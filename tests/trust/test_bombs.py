"""Images that are bombs, and class names that are paths or code."""

import tarfile

import hostile
import pyarrow as pa
import pyarrow.parquet as pq
from commandline import contents, done, refused
from hostile import LOCAL, SMALL

from raydd.store import distilled
from raydd.store.run import Run


def bad_images() -> dict[str, bytes]:
    whole = hostile.picture(3)
    return {
        "zip.png": hostile.zip_bomb(),
        "gzip.jpg": hostile.gzip_bomb(),
        "huge.png": hostile.png_bomb(60_000),
        "large.png": hostile.png_bomb(8_100),
        "text.png": hostile.png_text_bomb(),
        "cut.png": whole[: len(whole) // 2],
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch executed) (w) file\n",
        "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "tiff.tif": b"II*\0" + b"\xff" * 64,
    }


def test_images_that_are_bombs(tmp_path):
    tree = hostile.write_tree(tmp_path / "tree")
    for name, data in bad_images().items():
        (tree / "ant" / name).write_bytes(data)
    done("distill", "random", "--data", tree, "--out", tmp_path / "run", "--ipc", 3, "--size", 8, *LOCAL)
    used = {k for image in distilled.read_class(Run(str(tmp_path / "run")), 0) for k in image.source_keys}
    assert used <= {"ant/0.png", "ant/1.png", "ant/2.png", "ant/text.png"}


EVIL = ("../../escaped", "/etc/escaped", "<script>alert(1)</script>", "\x1b[2J\x07", "a|b`c`", "CON", "..")


def test_class_names_reach_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [(name, hostile.picture(10 * i + j)) for i, name in enumerate(EVIL) for j in range(2)]
    table = pa.table({"label": [name for name, _ in rows], "image": [data for _, data in rows]})
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    before = contents(tmp_path)
    run = tmp_path / "in" / "run"
    printed = done("distill", "random", "--data", tmp_path / "data", "--out", run, *SMALL)
    for format in ("imagefolder", "webdataset", "huggingface"):
        printed += done("export", "--run", run, "--out", tmp_path / "in" / format, "--format", format)
    printed += done("report", "--run", run) + done("status", "--run", run)
    printed += refused("distill", "random", "--data", tmp_path / "data", "--out", run, "--classes", "x\x1b[2J", *SMALL)
    assert "\x1b" not in printed and "\x07" not in printed
    page = (run / "report.html").read_text()
    assert "<script>alert" not in page
    after = contents(tmp_path)
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("in/")}
    assert not list(tmp_path.rglob("escaped"))
    with tarfile.open(tmp_path / "in" / "webdataset" / "train-00000.tar") as archive:
        assert all("/" not in name and ".." not in name for name in archive.getnames())
