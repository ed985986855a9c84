"""The work that faults are tried on: every stage of raydd with its real method, on three digits of 8 or 16 pixels."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pytest
from pipelines.small_ld3m import LOCAL
from pipelines.small_ld3m import method as small_ld3m

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.models.checkpoint import INFO
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import distill
from raydd.pipelines.dope import DopeOptions, dope
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.score import feature_scoring, fill_tables, open_table
from raydd.runtime.checkpoints import UnitWork
from raydd.runtime.execute import run_units
from raydd.runtime.work import Context, Resources, Unit
from raydd.score.table import ScoreConfig
from raydd.store import filesystem as files
from raydd.store import local_disk

COLUMNS = ("scoring", "NOpt", "LD3M", "doping", "evaluation")
TOGETHER_S = 2.5
SMALL = DscoConfig(steps=4, iterations=3, rounds=1, guidance=2.0)
# What a run is for; states, leases, events and manifests tell how it came about.
RESULTS = ("scores/label", "latents/label", "learned/", "distilled/label", "evaluation/seeds/", "doping-")


@dataclasses.dataclass(frozen=True)
class Work:
    """Sources and weights, and a finished set `base` that is doped and judged."""

    tree: str
    prior: str
    teacher: str
    base: str

    def make_base(self) -> None:
        options = DistillOptions(data=self.tree, out=self.base, teacher=self.teacher, ipc=2, size=16)
        distill(options, Control("random", ControlConfig()), LOCAL)

    def run(self, column: str, out: str, resources: Resources = LOCAL) -> None:
        """One stage, begun or gone on with, in the run `out`."""
        if column == "scoring":
            job = open_job(DistillOptions(data=self.tree, out=out, teacher=self.teacher))
            scoring = feature_scoring(job, ScoreConfig(scores=("features", "loss")))
            fill_tables([open_table(job, scoring, shared=None)], resources)
        elif column == "doping":
            options = DopeOptions(run=self.base, out=out, per_class=3, protocol="noaug:quick@2", flip=False, batch=16)
            dope(options, resources)
        elif column == "evaluation":
            self.copy_base(out)
            recipe = {"students": "convnet3", "protocol": "hard@2", "seeds": 3, "flip": False}
            evaluate(EvaluateOptions(run=(out,), val=self.tree, **recipe), resources)
        else:
            size, method = (16, Dsco("dsco", SMALL)) if column == "NOpt" else (8, small_ld3m(iterations=6))
            prior = f"{self.prior}-{size}"
            distill(DistillOptions(data=self.tree, out=out, prior=prior, ipc=2, size=size), method, resources)

    def copy_base(self, out: str) -> None:
        fs, path = fsspec.core.url_to_fs(out)
        if not fs.exists(f"{path}/run.json"):
            for name in files.list_files(self.base):
                files.write_atomic(files.join(out, name), Path(self.base, name).read_bytes())


def outcome(out: str) -> dict[str, str]:
    """Hashes of what a run holds, without the seconds that it took."""
    found = {}
    for name in files.list_files(out):
        if name.startswith(RESULTS):
            data = files.read_bytes(files.join(out, name))
            if name.endswith(".json"):
                facts = {key: value for key, value in json.loads(data).items() if "seconds" not in key}
                data = json.dumps(facts, sort_keys=True).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def committed(out: str) -> dict[str, int]:
    """When each committed file was written: those of a class count once its marker is there, which is written last."""
    if not os.path.isdir(out):
        return {}
    names = outcome(out)
    done = {re.search(r"label=\d+/", name)[0] for name in names if name.endswith("done.json")}
    last = {name.rpartition("/")[0] for name in names if name.startswith("doping-") and name.endswith(INFO)}

    def counts(name: str) -> bool:
        label = re.match(r"(?:distilled|learned)/(label=\d+)", name)
        if name.startswith("doping-"):
            return name.rpartition("/")[0] in last
        return label is None or f"{label[1]}/" in done

    return {name: os.stat(Path(out, name)).st_mtime_ns for name in names if counts(name)}


def killed_at(write: int, job: Callable[[], None]) -> bool:
    """Run `job` in a forked process that dies by SIGKILL halfway through its `write`-th file; whether it did."""
    process = os.fork()
    if process == 0:
        try:
            with_fault(write, lambda: os.kill(os.getpid(), signal.SIGKILL))
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def with_fault(write: int, fault: Callable[[], None], *, for_ever: bool = False) -> Callable:
    """Let `fault` happen halfway through the `write`-th file that is put in place from now on; the real function."""
    real, count = local_disk.replace, 0

    def replace(path: str, temporary: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == write or (for_ever and count > write):
            Path(temporary).write_bytes(data[: len(data) // 2])
            fault()
        real(path, temporary, data)

    local_disk.replace = replace
    return real


class Collected(Exception):
    """The units of a stage have been taken away before any was run."""


def collect(work: Work, column: str, out: str) -> list[Unit]:
    """The units of a stage; of "doping model" the model, of "doping" the classes of the doped set."""
    found, calls = [], 0

    def take(units: Sequence[Unit], resources: Resources, what: str, **more) -> None:
        nonlocal calls
        calls += 1
        if column == "doping" and calls == 1:
            return run_units(units, resources, what, **more)
        found.extend(units)
        raise Collected

    with pytest.MonkeyPatch.context() as patch:
        for module in ("distill", "dope", "evaluate"):
            patch.setattr(f"raydd.pipelines.{module}.run_units", take)
        with contextlib.suppress(Collected):
            work.run(column.split()[0], out)
    return found


def die(fate: str, folder: str | None = None, on_death: Callable[[], None] = lambda: None) -> None:
    """End this worker by SIGKILL, or the raylet above it and with it the node; `on_death` is called just before.

    With a folder, together with another one that is about to die: then the group restarts once for both.
    """
    if folder:
        begun = time.time()
        Path(folder, f"dying-{os.getpid()}").touch()
        while time.time() < begun + TOGETHER_S:
            times = [path.stat().st_mtime for path in Path(folder).glob("dying-*")]
            if sum(moment > begun - TOGETHER_S for moment in times) > 1:
                break
            time.sleep(0.05)
    # Not this process's parent: see `forked_workers`.
    raylet = int(os.environ["RAY_RAYLET_PID"])
    assert fate == "process" or b"raylet" in Path(f"/proc/{raylet}/cmdline").read_bytes()
    on_death()
    os.kill(os.getpid() if fate == "process" else raylet, signal.SIGKILL)
    time.sleep(60)


@dataclasses.dataclass(frozen=True)
class Doomed:
    """A unit that meets each of `fates` once, in turn; `folder` counts its tries, and the fates that it has met.

    process, raylet: dies halfway through its first file; notice: is told that its machine will be taken away. A try
    that a neighbor's death cuts short has met nothing: the next one meets the same fate.
    """

    unit: Unit
    fates: tuple[str, ...]
    folder: str

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def cost(self) -> float:
        # Those that will die come first, so that two of them are at work at once.
        return self.unit.cost + 1e9 * len(self.fates)

    @property
    def file(self) -> Path:
        return Path(self.folder, hashlib.sha256(self.name.encode()).hexdigest())

    @property
    def tries(self) -> int:
        return self._count("")

    @property
    def met(self) -> int:
        """How many of its fates it has met."""
        return self._count(".met")

    def _count(self, suffix: str) -> int:
        path = self.file.with_suffix(suffix)
        return len(path.read_bytes()) if path.exists() else 0

    def _note(self, suffix: str) -> None:
        with self.file.with_suffix(suffix).open("ab") as file:
            file.write(b"x")

    def is_done(self) -> bool:
        return self.unit.is_done()

    @property
    def node(self) -> str:
        """Where it was begun last."""
        path = self.file.with_suffix(".node")
        return path.read_text() if path.exists() else ""

    def run(self, context: Context) -> None:
        import ray

        self.file.with_suffix(".node").write_text(ray.get_runtime_context().get_node_id())
        self._note("")
        fate = self.fates[self.met] if self.met < len(self.fates) else None
        if fate == "notice":
            self._wait_for_notice(context)
        elif fate:
            with_fault(1, lambda: die(fate, self.folder, lambda: self._note(".met")))
        self.unit.run(context)

    def _wait_for_notice(self, context: Context) -> None:
        """Begin only once the notice is there, and stand still after the first save, until the end."""
        while context.deadline() is None:
            time.sleep(0.1)
        self._note(".met")
        save = UnitWork.save_state

        def save_and_stop(*args, **kwargs) -> None:
            save(*args, **kwargs)
            time.sleep(60)

        UnitWork.save_state = save_and_stop


@dataclasses.dataclass(frozen=True)
class DoomedLoad:
    """Loads a scorer whose process dies amid the class 0 the first time, and whose raylet amid the class 1."""

    load: Callable
    folder: str

    def __call__(self, device: str) -> Callable:
        score = self.load(device)

        def doomed(images, labels, keys):
            first = Path(self.folder, f"class-{labels[0]}")
            fate = {0: "process", 1: "raylet"}.get(labels[0])
            begun = first.exists()
            with first.open("ab") as tries:
                tries.write(b"x")
            if fate and not begun:
                die(fate)
            return score(images, labels, keys)

        return doomed
