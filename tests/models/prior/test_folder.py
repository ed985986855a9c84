"""Which files of a prior are read, and how what is missing or damaged is told; opening is in test_pipeline.py."""

import pytest

from raydd.errors import UserError
from raydd.models.prior.folder import files_hash, is_wanted, local_folder, read_json


def test_wanted_files():
    assert is_wanted("unet/config.json") and is_wanted("vae/diffusion_pytorch_model-00001-of-00002.safetensors")
    for name in ("unet/model.bin", "unet/model.fp16.safetensors", "README.md", "unet/model.pth"):
        assert not is_wanted(name)


def test_json(tmp_path):
    (tmp_path / "good.json").write_text('{"a": 1}')
    (tmp_path / "bad.json").write_text("{")
    assert read_json(str(tmp_path), "good.json") == {"a": 1} and read_json(str(tmp_path), "no.json") is None
    with pytest.raises(UserError, match=r"bad.json is no JSON"):
        read_json(str(tmp_path), "bad.json")


def test_hash_is_of_names_and_bytes(tmp_path):
    part = tmp_path / "unet"
    part.mkdir()
    (part / "config.json").write_text("{}")
    first = files_hash(str(tmp_path), ["unet"])
    (part / "notes.txt").write_text("ignored")
    assert files_hash(str(tmp_path), ["unet"]) == first
    (part / "config.json").write_text("{} ")
    second = files_hash(str(tmp_path), ["unet"])
    (part / "config.json").rename(part / "other.json")
    assert len({first, second, files_hash(str(tmp_path), ["unet"])}) == 3


def test_only_what_is_wanted_is_fetched_from_a_uri():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/folder-test/unet/config.json": b"{}", "/folder-test/unet/model.bin": b"pickle"})
    with local_folder("memory://folder-test") as folder:
        assert read_json(folder, "unet", "config.json") == {} and read_json(folder, "unet", "model.bin") is None
