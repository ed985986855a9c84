"""Passwords and keys stay out of what is printed and of what is written."""

import json

import hostile
import pytest
from commandline import contents, done, raydd
from hostile import LOCAL, SMALL

SECRET = "hunter2hunter2"
KEYS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "GOOGLE_API_KEY", "PASSWORD")


def test_secrets_of_the_environment_stay_there(tmp_path, source, digits_teacher, monkeypatch):
    for name in KEYS:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    run = tmp_path / "run"
    printed = done("distill", "random", "--data", source, "--out", run, *SMALL)
    judge = ("--protocol", "hard@1", "--students", "convnet3", "--seeds", 1)
    printed += raydd("evaluate", "--run", run, "--val", source, *judge, *LOCAL).err
    printed += done("report", "--run", run) + done("status", "--run", run, "--json")
    printed += raydd("--debug", "distill", "random", "--data", "s3://no-such-bucket/x", "--out", run, *SMALL).err
    assert SECRET not in printed
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


URIS = (
    f"https://me:{SECRET}@127.0.0.1:9/set",
    f"https://{SECRET}@127.0.0.1:9/set",
    f"s3://KEY:{SECRET}@bucket/set",
    f"https://127.0.0.1:9/set?sv=1&sig={SECRET}",
    f"zip::sftp://me:{SECRET}@127.0.0.1/a.zip",
)


@pytest.mark.parametrize("uri", URIS, ids=range(len(URIS)))
def test_secrets_in_uris_are_refused_and_not_repeated(uri, source, run, tmp_path):
    hostile.write_tree(tmp_path / "val")
    before = contents(tmp_path)
    for words in (
        ("distill", "random", "--data", uri, "--out", tmp_path / "new", *SMALL),
        ("distill", "random", "--data", source, "--out", uri, *SMALL),
        ("distill", "random", "--data", source, "--out", tmp_path / "new", "--scores", uri, "--teacher", uri, *SMALL),
        ("evaluate", "--run", run, "--val", uri, "--students", "convnet3", *LOCAL),
        ("evaluate", "--run", uri, "--val", source, *LOCAL),
        ("train-teacher", "--data", source, "--val", tmp_path / "val", "--out", uri, "--early-epochs", 0, *LOCAL),
        ("export", "--run", run, "--out", uri),
        ("report", "--run", run, "--out", uri),
        ("status", "--run", uri),
    ):
        for debug in ((), ("--debug",)):
            outcome = raydd(*debug, *words)
            said = "carries a password or a key" in outcome.err or "http is read-only" in outcome.err
            assert outcome.code == 2 and said, (words, outcome)
            assert SECRET not in outcome.err + outcome.out, words
    assert contents(tmp_path) == before


def test_secrets_in_the_command_are_not_recorded(tmp_path, source, monkeypatch):
    """Of an option that raydd itself never opens."""
    monkeypatch.setattr("sys.argv", ["/usr/bin/raydd", "distill", f"--note=https://me:{SECRET}@host/x"])
    done("distill", "random", "--data", source, "--out", tmp_path / "run", *SMALL)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"][2] == "--note=https://me:***@host/x"
