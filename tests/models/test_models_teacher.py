"""Teachers open from every kind of place, are frozen, keep exactly the rows asked for, and refuse foreign class orders;
the shared CIFAR ResNets reach their stated accuracy."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.errors import UserError
from raydd.models import teacher as module
from raydd.models.audit import measure_teacher, verdict
from raydd.models.checkpoint import ModelInfo, save_checkpoint
from raydd.models.registry import build_model
from raydd.models.teacher import as_teacher, check_classes, load_teacher

SHARED = Path(__file__).parents[2] / "../shared/data"
NAMES = ("ant", "bee", "cat", "dog")
INFO = ModelInfo(arch="convnet2", image_size=8, outputs=4, classes=NAMES, norm="batch", width=4, epoch=9)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))


def network(seed=0):
    return build_model("convnet2", num_classes=4, image_size=8, width=4, seed=seed).eval()


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(str(tmp_path), "teacher", network(0), INFO)
    save_checkpoint(str(tmp_path), "early", network(1), dataclasses.replace(INFO, early=True))
    return str(tmp_path)


def test_directory_gives_the_converged_or_the_early_teacher(saved):
    converged, early = load_teacher(saved), load_teacher(saved, early=True)
    with torch.no_grad():
        expected = network(0)(INFO.normalization.apply(IMAGES))
    assert torch.equal(converged.logits(IMAGES), expected)
    assert early.info.early and not converged.info.early and converged.hash != early.hash
    assert not converged.model.training
    assert not any(p.requires_grad for p in converged.model.parameters())


def test_hash_covers_weights_and_normalization(saved):
    first = load_teacher(saved)
    other = as_teacher(network(0), dataclasses.replace(INFO, mean=(0.5, 0.5, 0.5)))
    assert load_teacher(saved).hash == first.hash == as_teacher(network(0), INFO).hash
    assert len({first.hash, other.hash, as_teacher(network(1), INFO).hash}) == 3


def test_rows_keep_those_outputs_in_that_order(saved):
    whole, cut = load_teacher(saved), load_teacher(saved, rows=[2, 0])
    assert torch.allclose(cut.logits(IMAGES), whole.logits(IMAGES)[:, [2, 0]], atol=1e-6)
    assert cut.info.classes == ("cat", "ant") and cut.info.outputs == 2 and cut.hash != whole.hash
    named = load_teacher(saved, rows=[2, 0], classes=["x", "y"])
    assert named.info.classes == ("x", "y")
    by_name = load_teacher(saved, classes=["cat", "ant"])
    assert by_name.hash == cut.hash


@pytest.mark.parametrize("rows", [[0, 4], [-1, 0], [1, 1], []])
def test_impossible_rows(rows, saved):
    with pytest.raises(UserError, match="cannot keep rows"):
        load_teacher(saved, rows=rows)


def test_one_row_per_class(saved):
    with pytest.raises(UserError, match="one row per class"):
        load_teacher(saved, rows=[0, 1], classes=["a", "b", "c"])


def test_rows_of_a_network_that_ends_in_a_convolution():
    model = build_model("squeezenet1_0", num_classes=5, image_size=64).eval()
    info = ModelInfo(arch="torchvision/squeezenet1_0", image_size=64, outputs=5)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before = as_teacher(model, info).logits(images)
    info = module._keep_rows(model, info, [3, 1], None)
    assert torch.allclose(as_teacher(model, info).logits(images), before[:, [3, 1]], atol=1e-6)


def test_checkpoint_file_with_and_without_json(saved, tmp_path):
    described = load_teacher(f"{saved}/teacher.safetensors")
    assert described.hash == load_teacher(saved).hash
    torch.save(build_model("cifar_resnet20", num_classes=6, image_size=32).state_dict(), tmp_path / "bare.pth")
    bare = load_teacher(str(tmp_path / "bare.pth"), arch="cifar_resnet20")
    assert bare.info.outputs == 6 and bare.info.image_size == 32 and bare.info.classes == ()
    with pytest.raises(UserError, match="add --teacher-arch"):
        load_teacher(str(tmp_path / "bare.pth"))
    with pytest.raises(UserError, match="is a convnet2 by its JSON"):
        load_teacher(f"{saved}/teacher.safetensors", arch="resnet18")


def test_missing_teachers_name_the_command(tmp_path, saved):
    with pytest.raises(UserError, match="raydd train-teacher --data SRC --out"):
        load_teacher(str(tmp_path / "nowhere"))
    (tmp_path / "early.json").unlink()
    with pytest.raises(UserError, match="no early teacher"):
        load_teacher(saved, early=True)
    with pytest.raises(UserError, match="check the path"):
        load_teacher(str(tmp_path / "gone.safetensors"))


def test_another_image_size_is_refused(saved):
    load_teacher(saved, image_size=8)
    with pytest.raises(UserError, match="works at 8 px but the images have 16 px"):
        load_teacher(saved, image_size=16)


def test_class_names_are_compared_in_order(saved):
    teacher = load_teacher(saved)
    assert check_classes(teacher, NAMES) is None
    with pytest.raises(UserError, match="4 outputs but the source has 3 classes"):
        check_classes(teacher, NAMES[:3])
    with pytest.raises(UserError, match="output 1 is 'bee' but class 1 of the source is 'cat'"):
        check_classes(teacher, ("ant", "cat", "bee", "dog"))
    nameless = as_teacher(network(), dataclasses.replace(INFO, classes=()))
    assert "no class names" in check_classes(nameless, NAMES)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_pretrained_from_the_cache_or_a_remedy(hub, monkeypatch):
    with pytest.raises(UserError, match=r"put squeezenet1_1-\w+\.pth into .*checkpoints") as caught:
        load_teacher("squeezenet1_1:pretrained")
    assert "\n" not in str(caught.value)
    model = build_model("squeezenet1_1", num_classes=1000, image_size=224, seed=3)
    torch.save(model.state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    teacher = load_teacher("squeezenet1_1:pretrained", rows=[0, 217], classes=["n01440764", "n02102040"])
    assert teacher.info.outputs == 2 and teacher.info.classes == ("n01440764", "n02102040")
    assert teacher.info.mean == (0.485, 0.456, 0.406) and teacher.info.image_size == 224
    assert teacher.info.top1 == pytest.approx(0.58178)


def test_pretrained_names_are_checked(hub):
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        load_teacher("torchvision/resnet5O:pretrained")
    with pytest.raises(UserError, match="choose one of IMAGENET1K_V1"):
        load_teacher("resnet18:IMAGENET1K_V7")
    with pytest.raises(UserError, match="no early version"):
        load_teacher("resnet18:pretrained", early=True)


def test_shared_cifar_weights_reach_their_accuracy():
    pq = pytest.importorskip("pyarrow.parquet")
    weights, source = SHARED / "weights/cifar10-resnet20.safetensors", SHARED / "cifar10-jpeg/val"
    if not weights.exists() or not source.exists():
        pytest.skip("../shared/data is absent")
    rows = next(pq.ParquetFile(next(source.glob("*.parquet"))).iter_batches(1000)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    teacher = load_teacher(str(weights), arch="cifar_resnet20")
    report = measure_teacher(teacher, (images, torch.tensor([row["label"] for row in rows])))
    # .810 is stated for all 10,000; the sampling error of 1,000 is .012.
    assert report.top1 == pytest.approx(0.81, abs=0.03)
    assert report.mapping == tuple(range(10))
    assert verdict(report, stated_top1=0.81) == []
