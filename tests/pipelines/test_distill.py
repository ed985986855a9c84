"""Distilled sets: the same whatever the order, place or company they are made in; resumed, redone, and told apart."""

import dataclasses
import errno
import io
import json
import os
import shutil
import tarfile

import pytest
import torch
from commandline import contents, snapshot

from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import InfoUtilConfig, SelectConfig
from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill, distill_many, prepare, reference
from raydd.pipelines.infoutil import InfoUtil
from raydd.runtime.work import Resources
from raydd.store import distilled, events
from raydd.store.run import Run

LOCAL = Resources(executor="local")
RANDOM = Control("random", ControlConfig())
INFOUTIL = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2, labels="patch", mipc=8)))


@pytest.fixture
def ask(tree, tmp_path, digits_teacher):
    """Options of a distillation of the tree into a directory of that name."""

    def options(name: str, **changes) -> DistillOptions:
        plain = {"data": str(tree), "teacher": digits_teacher, "ipc": 1, "batch": 16}
        return DistillOptions(**(plain | {"out": str(tmp_path / name)} | changes))

    return options


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


@dataclasses.dataclass(frozen=True)
class Slow(Control):
    """Random images after three steps, each saved; class 1 fails in step 2 while the file `stop` is there."""

    stop: str = ""

    def build(self, job, label, tables, teacher, work):
        state = work.load_state()
        x = state.tensors["x"] if state else torch.zeros(2)
        for step in range(state.step if state else 0, 3):
            work.say(f"step {step}")
            if (label, step) == (1, 2) and os.path.exists(self.stop):
                raise ZeroDivisionError
            x = x + torch.rand(2, generator=torch_rng(job.seed, step))
            work.save_state({"x": x}, step + 1)
        return super().build(job, label, tables, teacher, work)


def half_done(ask, tmp_path, capsys) -> Slow:
    """A run whose class 1 stopped in its third step."""
    (tmp_path / "stop").touch()
    slow = Slow("random", ControlConfig(), str(tmp_path / "stop"))
    with pytest.raises(UserError, match="1' failed: ZeroDivisionError"):
        distill(ask("run"), slow, LOCAL)
    assert [path.name for path in (tmp_path / "run" / "state").glob("*.safetensors")] == ["class-1.safetensors"]
    (tmp_path / "stop").unlink()
    capsys.readouterr()
    return slow


def test_a_half_done_class_goes_on_from_its_state(ask, tmp_path, capsys):
    slow = half_done(ask, tmp_path, capsys)
    manifest = distill(ask("run"), slow, LOCAL)
    assert [line for line in capsys.readouterr().out.splitlines() if "step" in line] == ["1: step 2"]
    assert not list((tmp_path / "run" / "state").glob("*.safetensors"))
    assert hashes(manifest) == hashes(distill(ask("calm"), slow, LOCAL))
    resumed = [event for event in events.read(Run(ask("run").out)) if event["event"] == "unit_resumed"]
    assert [(event["name"], event["step"]) for event in resumed] == [("1", 2)]


@pytest.mark.parametrize("changes", [{"force": True}, {"force": True, "classes": "1"}], ids=["all", "one"])
def test_force_forgets_a_half_done_class(ask, tmp_path, capsys, changes):
    slow = half_done(ask, tmp_path, capsys)
    distill(ask("run", **changes), slow, LOCAL)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1: ")]
    assert steps == ["1: step 0", "1: step 1", "1: step 2"]


@dataclasses.dataclass(frozen=True)
class Pairs(Control):
    """Random images, made two classes at a time; says in a file of the run what it was asked for."""

    def packs(self, job):
        return [(0, 1), (2,)]

    def cost(self, job, label):
        return float(3 - label)

    def build_pack(self, job, labels, wanted, tables, teacher, work):
        state = work.load_state()
        work.save_state({"x": torch.zeros(1)}, (state.step if state else 0) + 1)
        with open(os.path.join(job.out, "asked"), "a") as log:
            log.write(f"{work.unit} {labels} {wanted}\n")
        return [super(Pairs, self).build(job, label, tables, teacher, work) for label in labels]


PAIRS = Pairs("random", ControlConfig())


def asked(out) -> list[str]:
    return (out / "asked").read_text().splitlines()


def test_packs_give_the_classes_that_single_units_give(ask, tmp_path):
    packs, single = distill(ask("packs"), PAIRS, LOCAL), distill(ask("single"), RANDOM, LOCAL)
    assert hashes(packs) == hashes(single)
    # The dearer pack first: two classes against one.
    assert asked(tmp_path / "packs") == ["0+1 (0, 1) (0, 1)", "2 (2,) (2,)"]
    made = [event["name"] for event in events.read(Run(ask("packs").out)) if event["event"] == "class_committed"]
    assert made == ["0", "1", "2"] and not list((tmp_path / "packs" / "state").glob("*"))


def test_of_a_pack_only_the_wanted_classes_are_committed(ask, tmp_path):
    part = distill(ask("run", classes="1"), PAIRS, LOCAL)
    assert part["counts"] == {"1": 1} and asked(tmp_path / "run") == ["0+1 (0, 1) (1,)"]
    before = snapshot(tmp_path / "run" / "distilled" / "label=1")
    whole = distill(ask("run"), PAIRS, LOCAL)
    assert asked(tmp_path / "run")[1:] == ["0+1 (0, 1) (0,)", "2 (2,) (2,)"]
    assert snapshot(tmp_path / "run" / "distilled" / "label=1") == before
    assert hashes(whole) == hashes(distill(ask("at once"), PAIRS, LOCAL))


def test_a_class_of_a_pack_is_redone_alone(ask, tmp_path):
    old = distill(ask("run"), PAIRS, LOCAL)
    before = snapshot(tmp_path / "run" / "distilled")
    new = distill(ask("run", classes="0", force=True), PAIRS, LOCAL)
    after = snapshot(tmp_path / "run" / "distilled")
    assert {name.split("/")[0] for name in after if after[name] != before[name]} == {"label=0", "dataset.json"}
    assert hashes(new) == hashes(old) and new["revision"] > old["revision"]
    assert asked(tmp_path / "run")[2:] == ["0+1 (0, 1) (0,)"]


def test_a_pack_that_was_lost_between_two_commits_goes_on_with_the_second(ask, tmp_path, monkeypatch):
    commit, done = distilled.commit_class, []

    def lost(run, label, *rest, **facts):
        if label == 1 and not done:
            done.append(label)
            raise RuntimeError("lost")
        commit(run, label, *rest, **facts)

    monkeypatch.setattr(distilled, "commit_class", lost)
    with pytest.raises(UserError, match=r"0\+1' failed: RuntimeError: lost"):
        distill(ask("run"), PAIRS, LOCAL)
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "distilled").glob("label=*")) == ["label=0", "label=2"]
    assert [path.name for path in (run / "state").glob("*")] == ["class-0+1.safetensors"]
    before = snapshot(run / "distilled" / "label=0")
    manifest = distill(ask("run"), PAIRS, LOCAL)
    assert snapshot(run / "distilled" / "label=0") == before and not list((run / "state").glob("*"))
    assert asked(run)[2:] == ["0+1 (0, 1) (1,)"]
    assert hashes(manifest) == hashes(distill(ask("calm"), PAIRS, LOCAL))


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
