"""Distilled sets: the same whatever the order, place or company they are made in; resumed, redone, and told apart."""

import errno
import io
import json
import os
import shutil
import tarfile

import pytest
from commandline import contents, snapshot

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill, distill_many, prepare, reference
from raydd.pipelines.infoutil import InfoUtil
from raydd.runtime.work import Resources
from raydd.store import distilled
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())
INFOUTIL = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch", mipc=8)))


def hashes(manifest: dict) -> dict[str, str]:
    assert len(manifest["hashes"]) == len(manifest["classes"])
    return manifest["hashes"]


def images(out) -> dict[str, str]:
    """Content hashes of the committed image files."""
    return {name: content for name, content in contents(out).items() if name.endswith("images.parquet")}


@pytest.mark.parametrize("method", [RANDOM, INFOUTIL], ids=["random", "infoutil"])
def test_same_seed_same_bytes_other_seed_other_images(ask, tmp_path, method):
    first, second, other = (distill(ask(name, seed=s), method, LOCAL) for name, s in (("a", 0), ("b", 0), ("c", 1)))
    assert images(tmp_path / "a") == images(tmp_path / "b")
    assert hashes(first) == hashes(second)
    assert not set(hashes(first).values()) & set(hashes(other).values())


def test_seeds_of_one_batch_of_requests_do_not_mix(ask):
    """One method object in several requests must not carry a draw from one to the other."""
    together = distill_many([(ask(f"t{s}", seed=s), RANDOM) for s in range(3)], LOCAL)
    alone = [distill(ask(f"a{s}", seed=s), RANDOM, LOCAL) for s in range(3)]
    assert [hashes(m) for m in together] == [hashes(m) for m in alone]
    assert len({str(hashes(m)) for m in together}) == 3


def test_one_class_alone_is_the_class_of_the_whole(ask, tmp_path):
    whole = distill(ask("whole"), INFOUTIL, LOCAL)
    part = distill(ask("part", classes="1"), INFOUTIL, LOCAL)
    assert part["hashes"] == {"1": hashes(whole)["1"]} and part["counts"] == {"1": 1}
    assert hashes(distill(ask("part"), INFOUTIL, LOCAL)) == hashes(whole)
    assert images(tmp_path / "part") == images(tmp_path / "whole")


def write_tar(tree, path, backwards: bool) -> str:
    """The training images as one tar; keys do not depend on the order of its members."""
    files = sorted((tree / "train").glob("*/*.png"), reverse=backwards)
    path.mkdir()
    with tarfile.open(path / "all.tar", "w") as archive:
        for file in files:
            name = f"{file.parent.name}-{file.stem}"
            for suffix, data in ((".png", file.read_bytes()), (".cls", file.parent.name.encode())):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (path / "classes.txt").write_text("0\n1\n2\n")
    return str(path)


def test_order_of_the_listing_is_free(ask, tree, tmp_path):
    """Another order means other units and other batches, but the same images, windows, labels and bytes."""
    made = []
    for backwards in (False, True):
        data = write_tar(tree, tmp_path / f"tar-{backwards}", backwards)
        made.append(distill(ask(f"run-{backwards}", data=data), INFOUTIL, LOCAL))
    assert hashes(made[0]) == hashes(made[1])


def test_batch_size_changes_nothing_that_is_not_tied(ask):
    """Scores differ in low bits only, so the chosen images and windows are the same."""
    chosen = []
    for batch in (8, 64):
        out = f"run-{batch}"
        distill(ask(out, batch=batch), INFOUTIL, LOCAL)
        run = Run(ask(out).out)
        chosen.append(
            [(i.source_keys, i.boxes, i.data) for label in range(3) for i in distilled.read_class(run, label)]
        )
    assert chosen[0] == chosen[1]


def test_a_finished_run_is_not_touched(ask, tmp_path):
    first = distill(ask("run"), INFOUTIL, LOCAL)
    before = snapshot(tmp_path / "run")
    assert distill(ask("run"), INFOUTIL, LOCAL) == first
    assert snapshot(tmp_path / "run") == before


def test_one_class_is_redone_alone_and_the_revision_tells(ask, tmp_path):
    old = distill(ask("run"), INFOUTIL, LOCAL)
    before = snapshot(tmp_path / "run" / "distilled")
    new = distill(ask("run", classes="1", force=True), INFOUTIL, LOCAL)
    after = snapshot(tmp_path / "run" / "distilled")
    changed = {name.split("/")[0] for name in after if after[name] != before[name]}
    assert changed == {"label=1", "dataset.json"}
    assert new["revision"] > old["revision"] and hashes(new) == hashes(old)
    assert Run(str(tmp_path / "run")).read()["stages"]["distill"]["ended"]


def test_force_makes_everything_again(ask, tmp_path):
    distill(ask("run"), INFOUTIL, LOCAL)
    old = snapshot(tmp_path / "run")
    (tmp_path / "run" / "evaluation").mkdir()
    (tmp_path / "run" / "evaluation" / "old.json").write_text("{}")
    made = distill(ask("run", ipc=2, force=True), INFOUTIL, LOCAL)
    assert made["ipc"] == 2 and made["images"] == 6
    assert not (tmp_path / "run" / "evaluation").exists()
    new = snapshot(tmp_path / "run")
    assert all(new[name][0] > old[name][0] for name in old if name.startswith("distilled"))


def test_another_configuration_is_refused_and_names_the_option(ask, tmp_path):
    distill(ask("run"), INFOUTIL, LOCAL)
    before = snapshot(tmp_path / "run")
    changed = InfoUtil(
        "infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch", mipc=8, direction="bottom"))
    )
    with pytest.raises(UserError, match=r'options.select.direction: "top" -> "bottom".*--force'):
        distill(ask("run"), changed, LOCAL)
    with pytest.raises(UserError, match=r"seed: 0 -> 3"):
        distill(ask("run", seed=3), INFOUTIL, LOCAL)
    with pytest.raises(UserError, match=r"seed: 0 -> 3"):
        distill(ask("run", seed=3, classes="1", force=True), INFOUTIL, LOCAL)
    assert snapshot(tmp_path / "run") == before


def test_a_batch_of_requests_is_refused_as_a_whole(ask, tmp_path):
    with pytest.raises(UserError, match="--ipc 99"):
        distill_many([(ask("good"), RANDOM), (ask("bad", ipc=99), RANDOM)], LOCAL)
    assert not (tmp_path / "good").exists()


def infoutil(**switches) -> InfoUtil:
    return InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(mipc=8, **switches)))


def test_shared_scores_are_made_once(ask, tmp_path):
    shared = str(tmp_path / "shared")
    for out, switches in (("top", {}), ("bottom", {"direction": "bottom"}), ("hard", {"labels": "hard"})):
        manifest = distill(ask(out, scores=shared), infoutil(**switches), LOCAL)
        assert manifest["scores"].startswith(shared) and not (tmp_path / out / "scores").exists()
    (table,) = (tmp_path / "shared").iterdir()
    before = snapshot(table)
    again = distill(ask("top", scores=shared, force=True), infoutil(), LOCAL)
    assert snapshot(table) == before
    assert hashes(again) == hashes(distill(ask("alone"), infoutil(), LOCAL))


def test_a_finished_set_needs_no_scores(ask, tmp_path):
    options = ask("run", scores=str(tmp_path / "shared"))
    distill(options, INFOUTIL, LOCAL)
    shutil.rmtree(tmp_path / "shared")
    distill(options, INFOUTIL, LOCAL)
    assert not (tmp_path / "shared").exists()


def test_manifest_says_how_the_set_was_made(ask, digits_teacher):
    manifest = distill(ask("run"), INFOUTIL, LOCAL)
    assert manifest["method"] == "infoutil" and manifest["factor"] == 2 and manifest["codec"] == "png"
    assert manifest["labels"]["form"] == "patch" and manifest["labels"]["early"]
    assert manifest["label_bytes"] == 3 * 4 * 3 * 2
    assert manifest["teacher_audit"]["images"] == 24
    assert manifest["source"]["kind"] == "imagefolder" and manifest["revision"] == 1


def test_damaged_images_do_not_stop_a_set(ask, tree):
    for i in range(4):
        (tree / "train" / "1" / f"{i:02d}.png").write_bytes(b"broken" if i % 2 else b"")
    for method in (RANDOM, INFOUTIL, Control("herding", ControlConfig())):
        manifest = distill(ask(method.name, ipc=2), method, LOCAL)
        assert manifest["counts"] == {"0": 2, "1": 2, "2": 2}


def test_too_many_damaged_images_fail_one_class_only(ask, tree):
    for path in sorted((tree / "train" / "1").iterdir())[3:]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"/1' failed: class '1' has \d scored images and needs 4.*the others are kept"):
        distill(ask("run"), INFOUTIL, LOCAL)
    run = Run(ask("run").out)
    assert list(distilled.read_manifest(run)["counts"]) == ["0", "2"]
    assert run.read()["stages"]["distill"]["ended"] is None
    assert "unit_failed" in (tree.parent / "run" / "events.jsonl").read_text()


def test_full_stands_for_the_source(ask, tmp_path):
    manifest = reference(ask("full", ipc=2))
    assert manifest["method"] == "full" and manifest["images"] == 0 and manifest["labels"]["early"]
    before = snapshot(tmp_path / "full")
    assert reference(ask("full", ipc=2)) == manifest and snapshot(tmp_path / "full") == before
    with pytest.raises(UserError, match="ipc: 2 -> 3"):
        reference(ask("full", ipc=3))
    with pytest.raises(UserError, match="--ipc 0"):
        reference(ask("other", ipc=0))
    assert reference(ask("full", ipc=3, force=True))["ipc"] == 3


def test_preparing_writes_nothing(ask, tmp_path):
    prepare(ask("run"), INFOUTIL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("writes", [2, 9])
def test_a_full_disk_stops_in_one_line_and_the_same_command_goes_on(ask, tmp_path, monkeypatch, writes):
    """Writes from the given one on fail, during the scores (2) or between the classes (9)."""
    wanted = hashes(distill(ask("wanted"), INFOUTIL, LOCAL))
    real, done = os.fsync, []

    def fsync(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > 2 * writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="disk full while writing"):
            distill(ask("run"), INFOUTIL, LOCAL)
    assert not [name for name in contents(tmp_path / "run") if ".tmp-" in name]
    for marker in (tmp_path / "run").rglob("*.json"):
        json.loads(marker.read_text())
    assert hashes(distill(ask("run"), INFOUTIL, LOCAL)) == wanted
