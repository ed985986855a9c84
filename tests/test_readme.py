"""The README's commands exist as written: every command, option and job script, and the tree names real folders."""

import pathlib
import re
import shlex

import pytest

from raydd.cli import COMMANDS, main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
    lines = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
    return [shlex.split(line.split("#")[0]) for line in lines if line.startswith("raydd ")]


def test_the_first_two_blocks_are_what_ci_runs():
    assert "jobs/quickstart.py" in BLOCKS[0] and "pip install" in BLOCKS[0]
    assert BLOCKS[1].strip().endswith("-m pytest -n 2")
    assert "block 1" in (script := (ROOT / ".ci" / "run").read_text()) or "for number in 1 2" in script


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_and_options_exist(words, capsys):
    _, name, *rest = words
    assert name in COMMANDS
    path = [name, rest[0]] if name in ("distill", "plan") else [name]
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    text = capsys.readouterr().out
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert option in text, f"{option} is no option of {' '.join(path)}"


def test_named_files_exist():
    for path in re.findall(r"(?:jobs|benchmarks)/[\w./-]+\.(?:py|png|md)", README):
        assert (ROOT / path).exists(), path


def test_the_table_names_every_command():
    for name in COMMANDS:
        assert f"`raydd {name}" in README, name


def test_the_readme_is_short():
    assert len(README.splitlines()) < 250
