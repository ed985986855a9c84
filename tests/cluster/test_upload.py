"""What `ray job submit --working-dir .` uploads, by Ray's own packer: the code, but no data, weights, runs or keys."""

import shutil
import zipfile
from pathlib import Path

import pytest
from cluster_files import ROOT

KEPT = (
    "raydd/cli.py",
    "raydd/data/decode.py",
    "raydd/models/prior/base.py",
    "jobs/dsco_in1k.py",
    "jobs/start.py",
    "pyproject.toml",
    "cluster/README.md",
)
LEFT = (
    ".git/config",
    ".venv/lib/x.py",
    "raydd.egg-info/PKG-INFO",
    "raydd/__pycache__/cli.cpython-311.pyc",
    "tests/test_cli.py",
    "benchmarks/results/demo.png",
    "data/imagenet/train/n01440764/1.JPEG",
    "runs/dsco/run.json",
    "raydd-demo/report.html",
    "dit-xl-2-256/transformer/model.safetensors",
    "teacher/resnet18.safetensors",
    "weights.pth",
    "checkpoints/last.pt",
    "train-00001.tar",
    "shards/train.parquet",
    ".env",
    "keys/raydd.pem",
    "nohup.log",
)


def uploaded(folder: Path, archive: Path) -> set[str]:
    """The names of the files in the package that Ray makes of a folder."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    packaging.create_package(str(folder), archive, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(archive) as package:
        return {name.removeprefix(f"{folder.name}/") for name in package.namelist() if not name.endswith("/")}


def checkout(folder: Path, ignore: str | None = None) -> Path:
    """Something like a checkout that was worked in, with our ignore files, or with other text in .rayignore."""
    for name in KEPT + LEFT:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    shutil.copy(ROOT / ".gitignore", folder)
    (folder / ".rayignore").write_text((ROOT / ".rayignore").read_text() if ignore is None else ignore)
    return folder


def test_code_goes_and_data_stays(tmp_path):
    found = uploaded(checkout(tmp_path / "checkout"), tmp_path / "package.zip")
    assert not set(KEPT) - found
    assert not set(LEFT) & found


@pytest.mark.parametrize(
    ("old", "new"),
    [("/data/", "data/"), ("*.safetensors", ""), ("*.parquet", "*.parquets"), (".env", ""), ("tests/", "")],
)
def test_a_mistake_in_the_ignore_file_is_seen(tmp_path, old, new):
    """An unanchored `data/` would leave raydd/data at home, and every job would end with an import error."""
    text = (ROOT / ".rayignore").read_text()
    assert f"\n{old}\n" in text
    found = uploaded(
        checkout(tmp_path / "checkout", text.replace(f"\n{old}\n", f"\n{new}\n")), tmp_path / "package.zip"
    )
    assert set(KEPT) - found or set(LEFT) & found


def test_this_checkout_is_a_small_package(tmp_path):
    """Ray refuses more than 512 MiB and warns from 256; code alone is far below one."""
    archive = tmp_path / "package.zip"
    found = uploaded(ROOT, archive)
    assert "jobs/dsco_in1k.py" in found and "raydd/data/decode.py" in found
    assert archive.stat().st_size < 4 * 2**20
