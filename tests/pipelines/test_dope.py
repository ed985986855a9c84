"""Doping, end to end on real digits: the set unchanged and originals byte for byte, the hard ones; resumed, shared,
refused; and a set of unequal classes and image sizes that students are trained on and judged by."""

import io
import json

import numpy as np
import pytest
from commandline import snapshot
from PIL import Image

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.errors import UserError
from raydd.pipelines import dope as doping
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.dope import DopeOptions, dope
from raydd.pipelines.dope_request import prepare
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.students import load_training, resolve_protocol
from raydd.runtime.work import Resources
from raydd.store import distilled, scores
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())
INFOUTIL = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch", mipc=8)))


@pytest.fixture
def base(tree, tmp_path, digits_teacher):
    """Distills the tree, 2 images per class at 16 px; the run's directory."""

    def make(method=RANDOM, **changes) -> str:
        plain = {"data": str(tree), "teacher": digits_teacher, "ipc": 2, "size": 16, "out": str(tmp_path / "base")}
        distill(DistillOptions(**(plain | changes)), method, LOCAL)
        return str(tmp_path / "base")

    return make


@pytest.fixture
def ask(tmp_path):
    """Options of a doping into a directory of that name, by a doping model of two epochs."""

    def options(run: str, name: str = "doped", **changes) -> DopeOptions:
        plain = {"protocol": "noaug:quick@2", "flip": False, "batch": 16}
        plain |= {} if "fraction" in changes else {"per_class": 3}
        return DopeOptions(run=run, out=str(tmp_path / name), **(plain | changes))

    return options


def images_of(run: str) -> list[list[distilled.DistilledImage]]:
    return [distilled.read_class(Run(run), label) for label in range(3)]


def added(run: str) -> list[list[str]]:
    """Keys of the originals behind the two distilled images of each class."""
    return [[image.source_keys[0] for image in own[2:]] for own in images_of(run)]


def test_the_set_and_the_originals_are_copied_byte_for_byte(base, ask, tree, tmp_path):
    run = base()
    before = snapshot(tmp_path / "base")
    manifest = dope(ask(run), LOCAL)
    assert snapshot(tmp_path / "base") == before
    held = {image.source_keys[0] for own in images_of(run) for image in own}
    for old, new in zip(images_of(run), images_of(str(tmp_path / "doped"))):
        assert new[:2] == old
        for image in new[2:]:
            (key,) = image.source_keys
            assert image.origin == "real" and image.data == (tree / "train" / key).read_bytes()
            assert key not in held and len(image.scores) == 1
    facts = manifest["doping"]
    assert manifest["method"] == "random+dope" and manifest["ipc"] == 5 and manifest["images"] == 15
    assert facts["counts"] == {"0": 3, "1": 3, "2": 3} and (facts["originals"], facts["distilled"]) == (9, 6)
    assert facts["share"] == 15 / 48 and facts["order"] == "lowest" and facts["target"] == "teacher"
    assert facts["model"]["student"] == "convnet3" and (facts["not_finite"], facts["unreadable"]) == (0, 0)


def test_the_lowest_clarity_of_each_class_is_chosen(base, ask, tmp_path):
    manifest = dope(ask(base()), LOCAL)
    run = str(tmp_path / "doped")
    held = {image.source_keys[0] for own in images_of(manifest["doping"]["base"]) for image in own}
    for label, keys in enumerate(added(run)):
        table = scores.read_label(Run(run), label).to_pydict()
        rows = sorted(zip(table["clarity_teacher"], table["key"], strict=True))
        lowest = [(score, key) for score, key in rows if key not in held][:3]
        assert keys == [key for _, key in lowest]
        assert [image.scores[0] for image in images_of(run)[label][2:]] == [score for score, _ in lowest]


def test_the_chosen_originals_can_stand_alone(base, ask, tmp_path):
    run = base()
    manifest = dope(ask(run, keep=False, fraction=0.25), LOCAL)
    assert manifest["method"] == "random-chosen" and manifest["images"] == 12 and manifest["ipc"] == 4
    assert (manifest["doping"]["distilled"], manifest["doping"]["originals"]) == (0, 12)
    for label, own in enumerate(images_of(str(tmp_path / "doped"))):
        table = scores.read_label(Run(str(tmp_path / "doped")), label).to_pydict()
        lowest = sorted(zip(table["clarity_teacher"], table["key"], strict=True))[:4]
        # Nothing is left out: the set's own originals may be among them.
        assert [image.source_keys[0] for image in own] == [key for _, key in lowest]


def test_the_same_command_does_nothing_and_force_does_it_again(base, ask, tmp_path):
    options = ask(base())
    first = dope(options, LOCAL)
    before = snapshot(tmp_path / "doped")
    assert dope(options, LOCAL) == first and snapshot(tmp_path / "doped") == before
    again = dope(ask(options.run, force=True), LOCAL)
    assert again["hashes"] == first["hashes"]
    after = snapshot(tmp_path / "doped")
    assert all(after[name][0] > before[name][0] for name in before if name.startswith(("distilled", "doping")))


@pytest.mark.parametrize("broken", ["fill_tables", "_choose", "_write_manifest"])
def test_a_stopped_doping_goes_on(base, ask, tmp_path, monkeypatch, broken):
    run = base()
    calm = dope(ask(run, "calm"), LOCAL)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(doping, broken, stop)
        with pytest.raises(KeyboardInterrupt):
            dope(ask(run), LOCAL)
    (weights,) = (tmp_path / "doped").glob("doping-*/model.safetensors")
    written = weights.stat().st_mtime_ns
    assert dope(ask(run), LOCAL)["hashes"] == calm["hashes"]
    assert weights.stat().st_mtime_ns == written


def test_a_second_fraction_shares_model_and_scores(base, ask, tmp_path):
    run, shared = base(), str(tmp_path / "shared")
    first = dope(ask(run, "half", fraction=0.5, scores=shared), LOCAL)
    before = snapshot(tmp_path / "shared")
    second = dope(ask(run, "most", fraction=0.75, scores=shared), LOCAL)
    easy = dope(ask(run, "easy", fraction=0.75, scores=shared, order="highest"), LOCAL)
    assert snapshot(tmp_path / "shared") == before
    assert (first["images"], second["images"], easy["images"]) == (24, 36, 36)
    for some, more in zip(added(str(tmp_path / "half")), added(str(tmp_path / "most"))):
        assert len(some) == 6 and len(more) == 10 and more[:6] == some
    assert added(str(tmp_path / "easy")) != added(str(tmp_path / "most"))
    alone = dope(ask(run, "alone", fraction=0.5), LOCAL)
    assert alone["hashes"] == first["hashes"]


def test_gradient_norms_need_no_doping_model(base, ask, tmp_path):
    manifest = dope(ask(base(), score="gradnorm_last"), LOCAL)
    assert manifest["doping"]["model"] is None and manifest["doping"]["order"] == "highest"
    assert not list((tmp_path / "doped").glob("doping-*"))
    for own in images_of(str(tmp_path / "doped")):
        values = [image.scores[0] for image in own[2:]]
        assert values == sorted(values, reverse=True)


def test_other_methods_and_labels_without_a_teacher(base, ask, tree, tmp_path):
    run = base(RANDOM, teacher=None)
    with pytest.raises(UserError, match="--target teacher needs a teacher"):
        dope(ask(run), LOCAL)
    manifest = dope(ask(run, target="label"), LOCAL)
    assert manifest["labels"]["form"] == "hard" and manifest["doping"]["model"]["labels"] == "hard"


def write_large(tree) -> None:
    """Every third training image becomes a JPEG of 40 x 28 pixels."""
    for path in sorted((tree / "train").glob("*/*.png"))[::3]:
        image = Image.open(path).convert("RGB").resize((40, 28))
        image.save(path.with_suffix(".jpg"), quality=95)
        path.unlink()


def test_unequal_classes_and_sizes_are_trained_and_judged(base, ask, tree, tmp_path):
    """Mosaics of 16 px with stored labels, and originals of 40 x 28 and 32 x 32 pixels chosen from one list."""
    write_large(tree)
    run = base(INFOUTIL)
    manifest = dope(ask(run, scope="global", per_class=4, protocol="noaug:quick_soft@2"), LOCAL)
    out = Run(str(tmp_path / "doped"))
    counts = list(manifest["counts"].values())
    assert sum(counts) == 18 and len(set(counts)) > 1
    sizes = {Image.open(io.BytesIO(image.data)).size for own in images_of(out.uri) for image in own}
    assert {(16, 16), (40, 28), (32, 32)} <= sizes
    assert manifest["labels"]["form"] == "online" and manifest["factor"] == 2

    protocol = resolve_protocol("soft", manifest, "convnet3", flip=False, precision="fp32")
    train, _ = load_training(out, manifest, protocol)
    assert train.images.shape == (18, 3, 16, 16) and train.soft_labels is None
    assert np.bincount(train.labels.numpy()).tolist() == counts
    # The distilled images come first in each class; only the originals keep their tiles in place.
    assert train.whole.tolist() == [i >= 2 for count in counts for i in range(count)]

    judged = {"run": (out.uri, run), "val": str(tree), "students": "convnet3", "seeds": 1, "flip": False}
    for evaluation in evaluate(EvaluateOptions(protocol="quick@2,quick_soft@2", **judged), LOCAL):
        (result,) = evaluation.seeds
        assert 0 <= result.last <= 1 and not np.isnan(result.per_class).any()
    assert dope(ask(run, scope="global", per_class=4, protocol="noaug:quick_soft@2"), LOCAL) == manifest


def test_broken_originals_are_counted_not_chosen(base, ask, tree):
    run = base()
    held = {image.source_keys[0] for own in images_of(run) for image in own}
    # Same names and so the same source; the content is not looked at before it is decoded.
    broken = [path for path in sorted((tree / "train" / "1").iterdir()) if f"1/{path.name}" not in held][:5]
    for path in broken:
        path.write_bytes(b"x" * path.stat().st_size)
    manifest = dope(ask(run), LOCAL)
    assert manifest["doping"]["unreadable"] == 5 and manifest["doping"]["counts"]["1"] == 3


def test_the_doped_set_is_a_run_like_any_other(base, ask, tmp_path):
    dope(ask(base()), LOCAL)
    record = json.loads((tmp_path / "doped" / "run.json").read_text())
    assert record["stages"]["distill"]["ended"] and record["config"]["distill"]["doping"]["per_class"] == 3
    assert not (tmp_path / "doped" / "state" / "train").exists()
    with pytest.raises(UserError, match=r"doping\.per_class: 3 -> 4"):
        dope(ask(str(tmp_path / "base"), per_class=4), LOCAL)
    with pytest.raises(UserError, match="holds a distill stage of another configuration"):
        distill(DistillOptions(data=str(tmp_path / "tree"), out=str(tmp_path / "doped"), size=16), RANDOM, LOCAL)


def test_preparing_writes_nothing(base, ask, tmp_path):
    run = base()
    prepare(ask(run))
    assert not (tmp_path / "doped").exists()
