"""Nothing that raydd reads can run code, reach outside, or bring it down: hostile files go through real commands.

Every case asserts three things: no file appears that the planted code would make, nothing outside the command's own
output changes, and what a person sees is one line (or a finished set that lists what was dropped).
"""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from commandline import contents, done, raydd, refused
from priors import write_tiny_prior

from raydd.errors import UserError
from raydd.store import distilled, plain, scores
from raydd.store.run import FORMAT, Run

LOCAL = ("--executor", "local")
SMALL = ("--ipc", 1, "--size", 8, *LOCAL)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes of three pictures."""
    return hostile.write_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    done("distill", "random", "--data", source, "--out", out, *SMALL)
    return out


@pytest.fixture
def canary(tmp_path):
    """A file that only planted code would make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "planted code ran"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_the_canary_sings(tmp_path):
    """The planted pickles do run code where they are unpickled."""
    for i, data in enumerate(hostile.pickles(tmp_path / "x").values()):
        canary = tmp_path / f"canary{i}"
        data = hostile.pickles(canary)[list(hostile.pickles(canary))[i]]
        load = (
            lambda data: torch.load(io.BytesIO(data), weights_only=False),
            lambda data: torch.load(io.BytesIO(data), weights_only=False),
            pickle.loads,
            lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        )[i]
        load(data)
        assert canary.exists()


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle", "npy"])
@pytest.mark.parametrize("suffix", ["pth", "ckpt", "safetensors", "npy"])
def test_weights_are_never_unpickled(kind, suffix, source, canary, tmp_path):
    path = tmp_path / f"teacher.{suffix}"
    path.write_bytes(hostile.pickles(canary)[kind])
    words = ("--data", source, "--out", tmp_path / "run", "--teacher", path, "--teacher-arch", "convnet3")
    line = refused("distill", "infoutil", *words, *SMALL)
    assert str(path) in line and not (tmp_path / "run").exists()


def test_a_teacher_directory_of_pickles(source, canary, tmp_path, digits_teacher):
    shutil.copytree(digits_teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "teacher.safetensors").write_bytes(hostile.pickles(canary)["torch"])
    words = ("--data", "digits", "--out", tmp_path / "run", "--teacher", tmp_path / "teacher", "--scores", "loss")
    assert "is not a safetensors file (it looks like a pickle)" in refused("score", *words, *LOCAL)


@pytest.mark.parametrize("kind", ["torch", "pickle", "npy"])
def test_pickles_in_a_source_are_no_images(kind, canary, tmp_path):
    data = hostile.pickles(canary)[kind]
    tree = hostile.write_tree(tmp_path / "tree")
    for name in ("x.png", "x.jpg", "x.npy", "x.pth", "x.pkl"):
        (tree / "ant" / name).write_bytes(data)
    done("distill", "random", "--data", tree, "--out", tmp_path / "run", "--ipc", 3, "--size", 8, *LOCAL)
    assert distilled.read_manifest(Run(str(tmp_path / "run")))["counts"] == {"ant": 3, "bee": 3}
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "x.npy").write_bytes(data)
    assert "is no source" in refused(
        "distill", "random", "--data", tmp_path / "arrays", "--out", tmp_path / "b", *SMALL
    )


def prior_of(tmp_path: Path) -> Path:
    return Path(write_tiny_prior(tmp_path / "prior", ("ant", "bee"), 8))


def sample(prior: Path, source: Path, tmp_path: Path) -> str:
    words = ("--data", source, "--out", tmp_path / "run", "--prior", prior, "--steps", 1)
    return refused("distill", "prior", *words, *SMALL)


def test_priors_are_never_unpickled(source, canary, tmp_path):
    prior, data = prior_of(tmp_path), hostile.pickles(canary)["torch"]
    weights = prior / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (prior / "unet" / "diffusion_pytorch_model.bin").write_bytes(data)
    assert "pickled weights are never read" in sample(prior, source, tmp_path)
    weights.write_bytes(data)
    assert str(prior) in sample(prior, source, tmp_path)
    # An index that names a pickle as the file of every weight.
    weights.unlink()
    names = {"conv_in.weight": "diffusion_pytorch_model.bin"}
    index = prior / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (prior / "unet" / "x.safetensors").write_bytes(b"")
    assert str(prior) in sample(prior, source, tmp_path)


def test_priors_choose_no_code(source, canary, tmp_path):
    prior = prior_of(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    index = json.loads((prior / "model_index.json").read_text())
    changes = (
        ("model_index.json", index | {"unet": ["evil", "UNet"]}, "raydd knows"),
        ("model_index.json", index | {"vae": ["..evil", "AutoencoderEvil"]}, "raydd knows"),
        ("scheduler/scheduler_config.json", {"_class_name": "evil.Scheduler"}, "evil.Scheduler"),
    )
    for name, content, said in changes:
        before = (prior / name).read_text()
        (prior / name).write_text(json.dumps(content))
        assert said in sample(prior, source, tmp_path)
        (prior / name).write_text(before)


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


@pytest.fixture(scope="module")
def ray_types():
    """Ray's Arrow types, registered as in every worker."""
    pytest.importorskip("ray.data")


def pickled_column(canary: Path, rows: int) -> pa.Array:
    return pa.array([pickle.dumps(hostile.Touch(canary))] * rows, pa.large_binary())


def test_a_pickled_column_does_run_code(ray_types, tmp_path):
    """What the next tests are about: plain pyarrow, in a process that has imported ray.data."""
    canary = tmp_path / "canary"
    data = hostile.parquet({"key": pickled_column(canary, 1)}, {"key": hostile.PICKLED})
    pq.ParquetFile(io.BytesIO(data)).read().to_pylist()
    assert canary.exists()


@pytest.mark.parametrize("column", ["image", "label", "other"])
def test_sources_with_pickled_columns(column, ray_types, canary, tmp_path):
    columns = {"image": pa.array([hostile.picture(i) for i in range(6)]), "label": pa.array([0, 1] * 3)}
    columns |= {column: pickled_column(canary, 6)}
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    path.write_bytes(hostile.parquet(columns, {column: hostile.PICKLED}))
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert f"{path} declares Arrow extension types" in line


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type"])
def test_sources_with_pickled_type_metadata(name, ray_types, canary, tmp_path):
    columns = {"image": pa.array([hostile.picture(i) for i in range(6)]), "label": pa.array([0, 1] * 3)}
    data = hostile.parquet(columns, {"label": name}, pickle.dumps(hostile.Touch(canary)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    words = ("--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "declares Arrow extension types" in refused("distill", "random", *words)


def test_runs_with_pickled_columns(ray_types, canary, run, tmp_path):
    path = run / "distilled" / "label=0" / "images.parquet"
    table = pq.ParquetFile(path).read()
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns |= {"soft_label": pickled_column(canary, table.num_rows)}
    path.write_bytes(hostile.parquet(columns, {"soft_label": hostile.PICKLED}))
    judge = ("--val", "digits", "--protocol", "hard@1", "--students", "convnet3", "--seeds", 1, *LOCAL)
    for words in (
        ("export", "--run", run, "--out", tmp_path / "a", "--format", "imagefolder"),
        ("export", "--run", run, "--out", tmp_path / "b", "--format", "huggingface"),
        ("report", "--run", run),
    ):
        outcome = raydd(*words)
        assert "Traceback" not in outcome.err and not canary.exists(), words
    assert "declares Arrow extension types" in refused(
        "export", "--run", run, "--out", tmp_path / "c", "--format", "webdataset"
    )
    assert refused("evaluate", "--run", run, *judge)


def test_score_tables_with_pickled_columns(ray_types, canary, tmp_path):
    run = Run(str(tmp_path))
    folder = tmp_path / "scores" / "label=0"
    folder.mkdir(parents=True)
    (folder / "unit-x.parquet").write_bytes(
        hostile.parquet({"key": pickled_column(canary, 2)}, {"key": hostile.PICKLED})
    )
    with pytest.raises(UserError, match="extension types"):
        scores.read_label(run, 0)


def test_parquet_that_states_the_impossible(tmp_path):
    """A label column of 10^8 equal values is a few kilobytes, and gigabytes in Python."""
    labels = pa.array(np.zeros(10**8, np.int8))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    pq.write_table(pa.table({"label": labels, "image": pa.nulls(len(labels), pa.binary())}), path, row_group_size=10**8)
    assert path.stat().st_size < 10**6
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "states 100,000,000 rows in" in line


def test_parquet_that_inflates(tmp_path):
    images = [hostile.picture(i) for i in range(4)] + [bytes(150 << 20)] * 2
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.parquet"
    table = pa.table({"label": ["ant", "bee"] * 3, "image": images})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 10**6
    line = refused("distill", "random", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "encoded images do not; remove the file" in line


@pytest.mark.parametrize("kind", hostile.safetensors_files())
def test_safetensors_that_lie(kind, source, tmp_path, digits_teacher):
    data = hostile.safetensors_files()[kind]
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(data)
    words = ("--data", source, "--out", tmp_path / "run")
    refused("distill", "infoutil", *words, "--teacher", path, "--teacher-arch", "convnet3", *SMALL)
    prior = prior_of(tmp_path)
    (prior / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(data)
    sample(prior, source, tmp_path)
    # A half-done training of a teacher.
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "resume-teacher.safetensors").write_bytes(data)
    train = ("--arch", "convnet3", "--width", 4, "--size", 8, "--epochs", 1, "--early-epochs", 0, "--val", source)
    line = refused("train-teacher", "--data", source, "--out", tmp_path / "half", *train, *LOCAL)
    assert "resume-teacher.safetensors" in line or "same images" in line or "overlap" in line
    with pytest.raises(UserError):
        plain.load_tensors(data, "x")


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


NEWER = json.dumps({"format": FORMAT + 1, "raydd": "9.9"}).encode()
# Files of a run or of what a run reads, spoiled one at a time, and the commands that then have to say so.
SPOILED = {
    "run.json": ("distill", "evaluate", "store-labels", "export", "compare", "report", "status", "dope"),
    "distilled/dataset.json": ("evaluate", "store-labels", "export", "compare", "report", "dope"),
    "distilled/label=0/done.json": ("distill",),
    "evaluation/x.json": ("compare", "report"),
}


def commands(source: Path, run: Path, tmp_path: Path, teacher: str) -> dict[str, tuple]:
    judge = ("--protocol", "hard@1", "--students", "convnet3")
    return {
        "distill": ("distill", "random", "--data", source, "--out", run, *SMALL),
        "evaluate": ("evaluate", "--run", run, "--val", source, *judge, *LOCAL),
        "store-labels": ("store-labels", "--run", run, *judge),
        "export": ("export", "--run", run, "--out", tmp_path / "exported"),
        "compare": ("compare", run),
        "report": ("report", "--run", run),
        "status": ("status", "--run", run),
        "dope": ("dope", "--run", run, "--per-class", 1, "--out", tmp_path / "doped", *LOCAL),
    }


CONTENTS = (NEWER, hostile.deep_json(), b"{", b"[]", b"7", b"", b"\xff\xfe")


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", SPOILED)
def test_records_that_are_spoiled(name, content, source, run, tmp_path, digits_teacher):
    if content == NEWER and name != "run.json":
        return
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content)
    before = contents(tmp_path)
    for command in SPOILED[name]:
        line = refused(*commands(source, run, tmp_path, digits_teacher)[command])
        assert str(run) in line, (command, line)
        if content == NEWER:
            assert "was made by a newer raydd (9.9): upgrade this one" in line, command
    assert contents(tmp_path) == before


def test_experts_and_teachers_that_are_spoiled(source, tmp_path, digits_teacher):
    for content in (hostile.deep_json(), b"{", b"[]"):
        shutil.copytree(digits_teacher, tmp_path / "teacher", dirs_exist_ok=True)
        (tmp_path / "teacher" / "teacher.json").write_bytes(content)
        words = ("--data", "digits", "--out", tmp_path / "run", "--teacher", tmp_path / "teacher")
        assert "does not describe a raydd model" in refused("distill", "infoutil", *words, "--ipc", 1, *LOCAL)
        (tmp_path / "experts").mkdir(exist_ok=True)
        (tmp_path / "experts" / "experts.json").write_bytes(content)
        learn = ("--generator", "pixels", "--loss", "mtt", "--experts", tmp_path / "experts")
        line = refused("distill", "ld3m", "--data", source, "--out", tmp_path / "run", *learn, *SMALL)
        assert "does not describe experts" in line
        tree = hostile.write_tree(tmp_path / f"tree{len(content)}")
        (tree / "classes.json").write_bytes(content)
        assert "classes.json" in refused("distill", "random", "--data", tree, "--out", tmp_path / "run", *SMALL)
        (tmp_path / "map.json").write_bytes(content)
        prior = ("--prior", prior_of(tmp_path / f"p{len(content)}"), "--class-map", tmp_path / "map.json")
        assert "--class-map" in refused("distill", "prior", "--data", source, "--out", tmp_path / "run", *prior, *SMALL)
    experts = Run(str(tmp_path / "experts"))
    (tmp_path / "experts" / "run.json").write_bytes(NEWER)
    words = ("--data", source, "--out", experts.uri, "--size", 8, "--count", 1, *LOCAL)
    assert "newer raydd (9.9)" in refused("train-experts", *words)


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


SECRET = "hunter2hunter2"
KEYS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "GOOGLE_API_KEY", "PASSWORD")


def test_secrets_of_the_environment_stay_there(tmp_path, source, digits_teacher, monkeypatch):
    for name in KEYS:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    run = tmp_path / "run"
    printed = done("distill", "random", "--data", source, "--out", run, *SMALL)
    judge = ("--protocol", "hard@1", "--students", "convnet3", "--seeds", 1)
    printed += raydd("evaluate", "--run", run, "--val", source, *judge, *LOCAL).err
    printed += done("report", "--run", run) + done("status", "--run", run, "--json")
    printed += raydd("--debug", "distill", "random", "--data", "s3://no-such-bucket/x", "--out", run, *SMALL).err
    assert SECRET not in printed
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


URIS = (
    f"https://me:{SECRET}@127.0.0.1:9/set",
    f"https://{SECRET}@127.0.0.1:9/set",
    f"s3://KEY:{SECRET}@bucket/set",
    f"https://127.0.0.1:9/set?sv=1&sig={SECRET}",
    f"zip::sftp://me:{SECRET}@127.0.0.1/a.zip",
)


@pytest.mark.parametrize("uri", URIS, ids=range(len(URIS)))
def test_secrets_in_uris_are_refused_and_not_repeated(uri, source, run, tmp_path):
    hostile.write_tree(tmp_path / "val")
    before = contents(tmp_path)
    for words in (
        ("distill", "random", "--data", uri, "--out", tmp_path / "new", *SMALL),
        ("distill", "random", "--data", source, "--out", uri, *SMALL),
        ("distill", "random", "--data", source, "--out", tmp_path / "new", "--scores", uri, "--teacher", uri, *SMALL),
        ("evaluate", "--run", run, "--val", uri, "--students", "convnet3", *LOCAL),
        ("evaluate", "--run", uri, "--val", source, *LOCAL),
        ("train-teacher", "--data", source, "--val", tmp_path / "val", "--out", uri, "--early-epochs", 0, *LOCAL),
        ("export", "--run", run, "--out", uri),
        ("report", "--run", run, "--out", uri),
        ("status", "--run", uri),
    ):
        for debug in ((), ("--debug",)):
            outcome = raydd(*debug, *words)
            said = "carries a password or a key" in outcome.err or "http is read-only" in outcome.err
            assert outcome.code == 2 and said, (words, outcome)
            assert SECRET not in outcome.err + outcome.out, words
    assert contents(tmp_path) == before


def test_secrets_in_the_command_are_not_recorded(tmp_path, source, monkeypatch):
    """Of an option that raydd itself never opens."""
    monkeypatch.setattr("sys.argv", ["/usr/bin/raydd", "distill", f"--note=https://me:{SECRET}@host/x"])
    done("distill", "random", "--data", source, "--out", tmp_path / "run", *SMALL)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"][2] == "--note=https://me:***@host/x"


def test_a_safetensors_teacher_is_still_read(digits_teacher):
    """The guards let good files pass."""
    data = (Path(digits_teacher) / "teacher.safetensors").read_bytes()
    wanted = safetensors.torch.load(data)
    assert plain.load_tensors(data, "x").keys() == wanted.keys()
