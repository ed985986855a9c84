"""WebDataset tars: samples and labels in their forms; hostile, damaged and compressed tars cannot do harm."""

import gzip
import tarfile

import pytest
from small_set import image_bytes, tar_bytes, write_files

from raydd.data.source import open_source
from raydd.errors import UserError

PNG, JPEG = image_bytes(1), image_bytes(2, kind="JPEG")


def opened(tmp_path, *members, **contents):
    return open_source(write_files(tmp_path, {"s.tar": tar_bytes(members)} | contents))


def labels(source):
    table = source.index()
    names = [source.classes[label] for label in table["label"].to_pylist()]
    return dict(zip(table["key"].to_pylist(), names, strict=True))


def test_label_forms_and_suffixes(tmp_path):
    source = opened(
        tmp_path,
        ("./d/a.jpg", JPEG),
        ("./d/a.cls", b"3\n"),
        ("b.JPEG", JPEG),
        ("b.json", b'{"label": 5, "caption": "x"}'),
        ("c.webp", PNG),
        ("c.txt", b"3"),
        ("e.seg.png", PNG),
        ("e.cls", b"5"),
        ("e.json", b'{"label": 3}'),
    )
    assert labels(source) == {"s.tar/d/a": "3", "s.tar/b": "5", "s.tar/c": "3", "s.tar/e": "5"}


def test_numbers_that_are_names_keep_their_zeros(tmp_path):
    source = opened(tmp_path, ("a.png", PNG), ("a.cls", b"02096294"), ("b.png", PNG), ("b.cls", b"02111889"))
    assert source.classes == ("02096294", "02111889")


def test_members_need_not_be_neighbors_and_reads_are_exact(tmp_path):
    source = opened(tmp_path, ("a.cls", b"0"), ("b.jpg", JPEG), ("b.cls", b"1"), ("a.png", PNG))
    assert [record.data for record in source.read(["s.tar/a", "s.tar/b"])] == [PNG, JPEG]


def test_images_without_a_label_and_second_images_are_reported(tmp_path):
    good = [("a.png", PNG), ("a.jpg", JPEG), ("a.cls", b"0"), ("b.png", PNG), ("b.cls", b"1")]
    source = opened(tmp_path, *good, ("c.png", PNG), ("d.png", PNG), ("d.json", b"[1, {"), ("e.cls", b"1"))
    assert dict(source.mislabeled) == {
        "s.tar/a": "a second image (.jpg) of one sample",
        "s.tar/c": "no label",
        "s.tar/d": "no label",
    }
    assert next(source.read(["s.tar/a"])).data == PNG


def test_hostile_members_are_refused_or_ignored(tmp_path):
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("dev.png")
    device.type = tarfile.CHRTYPE
    good = [("a.png", PNG), ("a.cls", b"0"), ("b.png", PNG), ("b.cls", b"1"), ("._a.png", b"x")]
    bad = [("../up.png", PNG), ("/abs.png", PNG), ("x/../../y.png", PNG), ("line\nfeed.png", PNG), ("..\\w.png", PNG)]
    source = opened(tmp_path, *good, *bad, link, device, ("a.cls.txt", b"9" * 100_000))
    assert set(labels(source)) == {"s.tar/a", "s.tar/b"}
    assert [reason for _, reason in source.mislabeled] == ["unsafe member name"] * len(bad)
    assert all("\n" not in key for key, _ in source.mislabeled)


@pytest.mark.parametrize("where", ["data", "header"])
def test_a_damaged_tar_keeps_what_came_before(tmp_path, where):
    members = []
    for i in range(6):
        members += [(f"{i}.cls", b"%d" % (i % 2)), (f"{i}.png", PNG)]
    data = bytearray(tar_bytes(members))
    at = data.index(b"4.png")
    if where == "data":
        del data[at + 512 + 100 :]
    else:
        data[at : at + 512] = b"\xee" * 512
    source = open_source(write_files(tmp_path, {"s.tar": bytes(data)}))
    assert set(labels(source)) == {f"s.tar/{i}" for i in range(4)}
    assert source.mislabeled[0][0] == "s.tar"
    assert "damaged tar" in source.mislabeled[0][1]


def test_what_is_no_tar_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of 1 images has a usable label"):
        open_source(write_files(tmp_path / "1", {"s.tar": b"hello" * 500}))
    with pytest.raises(UserError, match=r"is compressed .*: unpack it"):
        open_source(write_files(tmp_path / "2", {"s.tar.gz": gzip.compress(tar_bytes([("a.png", PNG)]))}))
