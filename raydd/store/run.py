"""The run directory: one place, at any fsspec URI, that holds everything a job made.

`run.json` records the configuration of each stage (score, distill, evaluate), its hash, package versions, seeds, start
and end. A stage that is started again with the same configuration goes on where it stopped; another configuration is
refused with the options that differ. Every file is written under a temporary name and renamed, or put in one piece.
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import raydd
from raydd.config import content_hash, difference, to_plain
from raydd.errors import UserError, redact
from raydd.store import filesystem as files
from raydd.store.plain import read_json

PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "diffusers")
# Bumped when a reader of an older raydd would misread the files.
FORMAT = 1
# What run.json is made of.
PARTS = ("config", "seeds", "stages")
# Folders of per-image tables: scores of a classifier, latents of a prior.
SCORES, LATENTS = TABLES = ("scores", "latents")
# What --force removes. The revision of a set that is distilled anew starts again at 1, so that its evaluations, which
# are told stale by the revision, have to go with it.
MADE_BY = {
    "score": (*TABLES, *(f"state/{name}" for name in TABLES)),
    "distill": ("distilled", "evaluation", "learned"),
    "evaluate": ("evaluation",),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory by URI; cheap to pickle, safe to open from many processes.

    `table` is the folder of the per-image table that is meant where there may be two kinds.
    """

    uri: str
    table: str = SCORES

    def path(self, *parts: str) -> str:
        return files.join(self.uri, *parts)

    def exists(self) -> bool:
        return files.exists(self.path("run.json"))

    def read(self) -> dict[str, Any]:
        """The content of run.json; `UserError` if there is no run here or a newer raydd made it."""
        if not self.exists():
            raise UserError(f"{self.uri} is no raydd run (it has no run.json): give the --out of 'raydd distill'")
        record = read_json(self.path("run.json"))
        version = record.get("format", FORMAT)
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{self.uri} was made by a newer raydd ({record.get('raydd')}): upgrade this one to read it"
            )
        if version != FORMAT or not all(isinstance(record.get(part), dict) for part in PARTS):
            raise UserError(f"{self.path('run.json')} is damaged or no file of raydd's: restore it")
        return record

    def begin(self, stage: str, config: Any, *, seed: int, force: bool = False) -> str:
        """Record that `stage` starts with `config`; return the configuration's hash.

        Raises `UserError` naming the options that differ when the stage was begun here with another configuration,
        unless `force`, which removes what that stage made.
        """
        record = self.read() if self.exists() else self._blank()
        plain, digest = to_plain(config), content_hash(config)
        known = record["config"].get(stage)
        if known is not None and known != plain and not force:
            changes = "; ".join(difference(known, plain))
            raise UserError(
                f"{self.uri} holds a {stage} stage of another configuration ({changes}): "
                "choose another --out, or --force to start it anew"
            )
        if force and known is not None:
            self._discard(stage)
        record["config"][stage] = plain
        record["hash"] = content_hash(record["config"])
        record["seeds"][stage] = seed
        kept = {} if force else record["stages"].get(stage, {})
        record["stages"][stage] = kept | {"hash": digest, "started": _now(), "ended": None}
        record["ended"] = None
        self._write(record)
        return digest

    def touch(self, stage: str) -> None:
        """Record that a stage starts whose configuration is kept with its results (evaluation)."""
        record = self.read()
        record["stages"].setdefault(stage, {})
        record["stages"][stage] |= {"started": _now(), "ended": None}
        self._write(record)

    def end(self, stage: str, **facts: Any) -> None:
        """Record that `stage` ended, with plain facts worth keeping (counts, seconds, what was dropped)."""
        record = self.read()
        record["stages"][stage] |= {"ended": _now(), **to_plain(facts)}
        record["ended"] = _now()
        self._write(record)

    def _blank(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "raydd": raydd.__version__,
            "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
            "command": [part.rsplit("/", 1)[-1] if i == 0 else redact(part) for i, part in enumerate(sys.argv)],
            "config": {},
            "hash": None,
            "seeds": {},
            "stages": {},
            "started": _now(),
            "ended": None,
        }

    def _write(self, record: dict[str, Any]) -> None:
        files.write_atomic(self.path("run.json"), json.dumps(record, indent=1).encode())

    def _discard(self, stage: str) -> None:
        for name in MADE_BY[stage]:
            files.remove_tree(self.path(*name.split("/")))


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
