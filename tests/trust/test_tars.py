"""Tars that name places outside, and such as bring a reader down."""

import tarfile
from pathlib import Path

import hostile
import pytest
from commandline import contents, done, refused
from hostile import LOCAL, SMALL

from raydd.store import distilled
from raydd.store.run import Run

OUTSIDE = ["../../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "good\x1b[2J"]


def test_tars_reach_nothing_outside(tmp_path):
    data = tmp_path / "tars"
    data.mkdir()
    (tmp_path / "secret.png").write_bytes(hostile.picture(200))
    images = {f"good{i}": hostile.picture(i + 1) for i in range(6)} | {name: hostile.picture(9) for name in OUTSIDE}
    links = [
        hostile.member("link.png", type=tarfile.SYMTYPE, linkname="../secret.png"),
        hostile.member("link.cls", b"ant"),
        hostile.member("hard.png", type=tarfile.LNKTYPE, linkname="../../secret.png"),
        hostile.member("hard.cls", b"ant"),
        hostile.member("dir.png", type=tarfile.DIRTYPE),
        hostile.member("device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    ]
    (data / "a.tar").write_bytes(hostile.tar(*links, *hostile.samples(images)))
    before = contents(tmp_path)
    done("distill", "random", "--data", data, "--out", tmp_path / "run", "--ipc", 3, "--size", 8, *LOCAL)
    run = Run(str(tmp_path / "run"))
    used = {key for label in (0, 1) for image in distilled.read_class(run, label) for key in image.source_keys}
    assert used == {f"a.tar/good{i}" for i in range(6)}
    after = contents(tmp_path)
    assert {name for name in after if name not in before or after[name] != before[name]} <= {
        name for name in after if name.startswith("run/")
    }
    assert not list(tmp_path.rglob("escaped*")) and not Path("/tmp/escaped.png").exists()


def damaged_tars() -> dict[str, bytes]:
    whole = hostile.tar(*hostile.samples({"a": hostile.picture(1), "b": hostile.picture(2)}))
    long = hostile.tar(hostile.member("a.png", b"x"), hostile.member("x" * 150 + ".png", b"x"))
    return {
        # Each member has a block of header and one of data: the second image, the first label, the long name.
        "negative": hostile.with_size(whole, -512, at=2048),
        "negative label": hostile.with_size(whole, -512, at=1024),
        "negative long name": hostile.with_size(long, -512, at=1024),
        "huge": hostile.with_size(whole, 8**11 - 1),
        "gzip": hostile.gzip_bomb(),
        "zip": hostile.zip_bomb(),
        "zeros": bytes(1 << 16),
        "empty": b"",
    }


@pytest.mark.parametrize("kind", damaged_tars())
@pytest.mark.timeout(20)
def test_tars_that_bring_a_reader_down(kind, tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "bad.tar").write_bytes(damaged_tars()[kind])
    assert "tars" in refused("distill", "random", "--data", tmp_path / "tars", "--out", tmp_path / "run", *SMALL)
    # Beside a good shard it is left out.
    good = hostile.tar(*hostile.samples({f"g{i}": hostile.picture(i + 1) for i in range(4)}))
    (tmp_path / "tars" / "good.tar").write_bytes(good)
    done("distill", "random", "--data", tmp_path / "tars", "--out", tmp_path / "run", "--ipc", 2, "--size", 8, *LOCAL)


def test_compressed_tars_are_refused_unread(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "bomb.tar.gz").write_bytes(hostile.gzip_bomb())
    words = ("--data", tmp_path / "tars", "--out", tmp_path / "run", *SMALL)
    assert "bomb.tar.gz is compressed" in refused("distill", "random", *words)
