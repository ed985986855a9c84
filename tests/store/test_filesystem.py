"""Files appear whole or not at all, on disk and in memory; listings are true; what a person can mend is one line."""

import errno
import http.server
import os
import threading
import time
from typing import ClassVar

import fsspec
import pytest

from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store import local_disk, reach
from raydd.store.reach import Unreachable, is_local, resolve, scheme, translate


@pytest.fixture(params=["local", "memory", "file"])
def root(request, tmp_path):
    if request.param == "memory":
        yield "memory://store-test"
        files.remove_tree("memory://store-test")
    else:
        yield str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def test_bytes_come_back_whole_and_in_ranges(root):
    uri = files.join(root, "a", "b.bin")
    files.write_atomic(uri, b"0123456789")
    assert files.read_bytes(uri) == b"0123456789"
    assert files.read_bytes(uri, 2, 5) == b"234"
    with files.open_input(uri) as stream:
        stream.seek(7)
        assert stream.read(2) == b"78"
    files.write_atomic(uri, b"new")
    assert files.read_bytes(uri) == b"new"
    assert files.size(uri) == 3


def test_listings(root):
    assert files.list_files(root) == []
    assert files.list_directory(files.join(root, "none")) == ([], [])
    for name in ("b", "a/c", "a/d/e"):
        files.write_atomic(files.join(root, name), name.encode())
    assert files.list_files(root) == ["a/c", "a/d/e", "b"]
    assert files.list_files(files.join(root, "a")) == ["c", "d/e"]
    assert files.list_sizes(root) == {"b": 1, "a/c": 3, "a/d/e": 5}
    assert files.list_directory(root) == (["a"], ["b"])
    assert files.list_files(files.join(root, "b")) == []


def test_exists_is_file_and_removal(root):
    uri = files.join(root, "a", "b")
    assert not files.exists(uri)
    files.write_atomic(uri, b"x")
    assert files.exists(uri) and files.is_file(uri)
    assert files.exists(files.join(root, "a")) and not files.is_file(files.join(root, "a"))
    files.remove_tree(files.join(root, "a"))
    assert not files.exists(uri)
    files.remove_tree(files.join(root, "a"))
    with pytest.raises(FileNotFoundError):
        files.read_bytes(uri)
    with pytest.raises(FileNotFoundError):
        files.size(uri)


def test_many_files_and_ranges_at_once(root):
    for name in "abc":
        files.write_atomic(files.join(root, name), name.encode() * 10)
    assert files.read_many(root, ["c", "gone", "a"]) == [b"c" * 10, b"", b"a" * 10]
    assert files.read_many(root, ["c", "a"], [0, 8], [3, 10]) == [b"ccc", b"aa"]


def test_makedirs_twice_and_over_a_file(tmp_path):
    files.makedirs(str(tmp_path / "a" / "b"))
    files.makedirs(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    files.write_atomic(str(tmp_path / "f"), b"x")
    with pytest.raises(UserError, match="a file has that name"):
        files.makedirs(str(tmp_path / "f" / "g"))


def test_join_and_absolute(tmp_path, monkeypatch):
    assert files.join("s3://b/", "a", "c") == "s3://b/a/c"
    assert files.join("memory://", "a") == "memory://a"
    assert files.join("x") == "x"
    monkeypatch.chdir(tmp_path)
    assert files.absolute("a/") == str(tmp_path / "a")
    assert files.absolute("~") == os.path.expanduser("~")
    assert files.absolute("s3://b/a/") == "s3://b/a"
    assert (scheme("zip::s3://b/a.zip"), scheme("a/b"), scheme("gs://b")) == ("zip", "file", "gs")
    assert is_local("file:///a") and not is_local("memory://a")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_keeps_the_old_file_and_leaves_no_trace(tmp_path, monkeypatch, code):
    uri = str(tmp_path / "f")
    files.write_atomic(uri, b"old")

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk full while writing .*f: free space and run the same command again"):
        files.write_atomic(uri, b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert files.read_bytes(uri) == b"old"


def test_interrupted_write_keeps_the_old_file_and_leaves_no_trace(tmp_path, monkeypatch):
    uri = str(tmp_path / "f")
    files.write_atomic(uri, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(uri, b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert files.read_bytes(uri) == b"old"


def test_temporary_files_of_a_killed_writer_are_not_listed(tmp_path):
    files.write_atomic(str(tmp_path / "f"), b"x")
    (tmp_path / f".f{local_disk.TEMP_MARK}0123").write_bytes(b"half")
    assert files.list_files(str(tmp_path)) == ["f"]
    assert files.list_directory(str(tmp_path)) == ([], ["f"])


def test_readers_never_see_a_part(root):
    uri, size = files.join(root, "f"), 200_000
    files.write_atomic(uri, b"0" * size)
    stop = time.monotonic() + 0.3

    def write(value):
        while time.monotonic() < stop:
            files.write_atomic(uri, value * size)

    writers = [threading.Thread(target=write, args=(value,)) for value in (b"1", b"2")]
    for writer in writers:
        writer.start()
    while time.monotonic() < stop:
        data = files.read_bytes(uri)
        assert len(data) == size and len(set(data)) == 1
    for writer in writers:
        writer.join()
    assert files.list_files(root) == ["f"]


def test_new_files_get_the_usual_permissions(tmp_path):
    files.write_atomic(str(tmp_path / "f"), b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_filesystems_that_only_rename_are_written_through_a_temporary_name(monkeypatch):
    """sftp, hdfs and their kind; the memory filesystem stands in for one by losing its place among the single puts."""
    monkeypatch.setattr(files, "SINGLE_PUT", frozenset())
    seen = []
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(
        type(memory), "mv", lambda fs, a, b: (seen.append(a), fs.pipe_file(b, fs.cat_file(a)), fs.rm(a))
    )
    files.write_atomic("memory://rename-test/f", b"x")
    assert local_disk.TEMP_MARK in seen[0]
    assert files.list_files("memory://rename-test") == ["f"]
    files.remove_tree("memory://rename-test")


def test_links_are_followed_and_cycles_cut(tmp_path):
    files.write_atomic(str(tmp_path / "real" / "a"), b"x")
    files.makedirs(str(tmp_path / "tree"))
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "twin").symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "dangling").symlink_to(tmp_path / "none")
    assert files.list_files(str(tmp_path / "tree")) == ["link/a", "twin/a"]
    assert files.list_directory(str(tmp_path / "tree")) == (["link", "twin", "up"], ["dangling"])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "empty path"),
        ("s33://b/a", r"unknown URI scheme 's33': did you mean 's3'\?"),
        ("http://127.0.0.1:9/a", r"cannot reach http://127.0.0.1:9/a .*check the address and that the server is up"),
    ],
)
def test_what_cannot_be_reached_is_one_line(uri, message):
    with pytest.raises(UserError, match=message) as error:
        files.exists(uri)
    assert "\n" not in str(error.value)


def test_missing_client_package_is_named(monkeypatch):
    def no_package(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", no_package)
    with pytest.raises(UserError, match=r"cannot open s3://b: Install s3fs"):
        resolve("s3://b")


def test_s3_without_credentials(monkeypatch, tmp_path):
    s3fs = pytest.importorskip("s3fs")
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    for verb in (files.exists, files.list_files, files.read_bytes, lambda uri: files.write_atomic(uri, b"x")):
        with pytest.raises(Unreachable, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID") as error:
            verb("s3://bucket/a")
        assert "\n" not in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_permission_and_programmer_errors():
    with pytest.raises(Unreachable, match="no permission"), translate("s3://b/a"):
        raise PermissionError("denied")
    with pytest.raises(TypeError), translate("s3://b/a"):
        raise TypeError("a bug stays a bug")
    with pytest.raises(FileNotFoundError), translate("s3://b/a"):
        raise FileNotFoundError("b/a")


def test_http_is_read_only_and_ranges_survive_a_plain_server(tmp_path):
    with pytest.raises(UserError, match="read-only"):
        files.write_atomic("http://127.0.0.1:9/a", b"x")
    files.write_atomic(str(tmp_path / "a.bin"), b"0123456789" * 10)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        assert files.list_directory(uri) == ([], ["a.bin"])
        assert files.list_files(uri) == ["a.bin"]
        assert files.read_many(uri, ["a.bin", "none"], [10, 0], [13, 1]) == [b"012", b""]
        with (
            pytest.raises(UserError, match="cannot send parts of a file: copy the data"),
            files.open_input(f"{uri}/a.bin") as stream,
            translate(uri),
        ):
            stream.seek(50)
            stream.read(1)
        server.shutdown()


def test_roots_are_not_removed():
    with pytest.raises(AssertionError):
        files.remove_tree("/")


def test_a_file_is_created_once(root):
    uri = files.join(root, "a", "b")
    assert files.create(uri, b"first") and not files.create(uri, b"second")
    assert files.read_bytes(uri) == b"first" and files.list_files(root) == ["a/b"]
    with pytest.raises(UserError, match="read-only"):
        files.create("http://127.0.0.1:9/x", b"")


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_create_at_once_one_succeeds(tmp_path, monkeypatch, links):
    if not links:  # as on a FAT disk

        def no_links(source, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
    made, uri = [], str(tmp_path / "x")
    start = threading.Barrier(8)

    def create(i: int) -> None:
        start.wait()
        made.append(files.create(uri, b"%d" % i) and i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [i for i in made if i]
    assert files.read_bytes(uri) == b"%d" % winner and os.listdir(tmp_path) == ["x"]


class Failing(http.server.BaseHTTPRequestHandler):
    """Serves one file; of each kind of request the first `bad` fail in the given way."""

    bad, way = 0, "503"
    seen: ClassVar[dict[str, int]] = {}

    def do_GET(self):
        count = self.seen[self.command] = self.seen.get(self.command, 0) + 1
        failing = count <= self.bad
        if failing and self.way == "503":
            self.send_error(503)
            return
        if failing and self.way == "hang up":
            return
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"0123456789"[: 4 if failing else 10])

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("way", ["503", "hang up", "cut"])
def test_an_http_source_that_fails_for_a_while_is_read_whole_and_one_that_stays_down_is_one_line(way, monkeypatch):
    waited = []
    monkeypatch.setattr(reach.time, "sleep", waited.append)
    monkeypatch.setattr(Failing, "way", way)
    monkeypatch.setattr(Failing, "bad", 2)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        for verb in (
            lambda: files.read_bytes(f"{uri}/a") == b"0123456789",
            lambda: files.read_many(uri, ["a", "a"]) == [b"0123456789"] * 2,
            lambda: files.size(f"{uri}/a") == 10,
            lambda: files.exists(f"{uri}/a"),
        ):
            monkeypatch.setattr(Failing, "seen", {})
            assert verb()
        assert waited
        if way != "cut":
            monkeypatch.setattr(Failing, "bad", 10**6)
            for verb in (files.exists, files.read_bytes, files.size, lambda uri: files.read_many(uri, [""])):
                waited.clear()
                with pytest.raises(Unreachable, match=f"cannot reach {uri}/a") as error:
                    verb(f"{uri}/a")
                assert "\n" not in str(error.value) and waited == list(reach.PAUSES_S)
        server.shutdown()


def test_a_bad_file_is_a_broken_image_and_a_lost_mount_is_not(tmp_path, monkeypatch):
    files.write_atomic(str(tmp_path / "a"), b"x")
    local = type(resolve(str(tmp_path))[0])

    def fail(code):
        def read(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(local, "cat_file", read)

    fail(errno.EIO)
    assert files.read_many(str(tmp_path), ["a"]) == [b""]
    with pytest.raises(Unreachable, match=f"cannot reach {tmp_path}/a .*check its disk or mount"):
        files.read_bytes(str(tmp_path / "a"))
    for code in (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT):
        fail(code)
        with pytest.raises(Unreachable, match=f"cannot reach {tmp_path} .*check its disk or mount"):
            files.read_many(str(tmp_path), ["a"])


def test_a_read_only_mount_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(local_disk, "replace", refuse)
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/f: it is on a read-only file system; choose"):
        files.write_atomic(str(tmp_path / "f"), b"x")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_named_files_are_removed_whether_or_not_some_are_gone(place, tmp_path):
    uri = str(tmp_path) if place == "local" else f"memory://{tmp_path}"
    for name in ("a", "b", "c", "d"):
        files.write_atomic(files.join(uri, name), b"x")
    files.remove_files(uri, ["a", "gone", "c"])
    assert files.list_files(uri) == ["b", "d"]
    files.remove_files(uri, [])
    files.remove_files(uri, ["gone"])
    assert files.list_files(uri) == ["b", "d"]
