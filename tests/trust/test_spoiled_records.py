"""The JSON files of runs, teachers, experts and sources, spoiled one at a time."""

import json
import shutil
from pathlib import Path

import hostile
import pytest
from commandline import contents, refused
from hostile import LOCAL, SMALL, prior_of

from raydd.store.run import FORMAT, Run

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
