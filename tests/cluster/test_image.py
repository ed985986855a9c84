"""The Dockerfile and its pins: every dependency of pyproject.toml, once, at a version that it allows; nothing moves."""

import re

import pytest
from cluster_files import FOLDER, PROJECT, ROOT, ray_pin
from packaging.requirements import Requirement
from safety_rules import unsafe

DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PINS = (FOLDER / "requirements.txt").read_text()
# What the image holds beside raydd's own dependencies, for s3://, gs://, and for the launcher on the head.
CLIENTS = {"s3fs", "gcsfs", "boto3", "google-api-python-client"}


def pins(text: str) -> list[Requirement]:
    """The lines of a requirements file."""
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def wrong_pins(text: str) -> list[str]:
    """What is wrong with the pins; [] if the image may be built with them."""
    found = {}
    wrong = []
    for pin in pins(text):
        operators = [spec.operator for spec in pin.specifier]
        if operators != ["=="] or "*" in str(pin.specifier):
            wrong.append(f"{pin.name}: no single version")
        elif pin.name in found:
            wrong.append(f"{pin.name}: twice")
        found[pin.name] = pin
    wanted = {need.name: need for need in map(Requirement, PROJECT["dependencies"])}
    wrong += [f"{name}: missing" for name in (wanted.keys() | CLIENTS) - found.keys()]
    wrong += [f"{name}: not asked for" for name in found.keys() - wanted.keys() - CLIENTS]
    for name in wanted.keys() & found.keys():
        versions = [spec.version for spec in found[name].specifier]
        fits = all(wanted[name].specifier.contains(version.removesuffix(".*")) for version in versions)
        if not fits or wanted[name].extras - found[name].extras:
            wrong.append(f"{name}: {found[name]} is not what pyproject.toml asks for")
    if "ray" in found and str(found["ray"].specifier) != f"=={ray_pin()}":
        wrong.append("ray: not the base image's")
    return wrong


def wrong_lines(text: str) -> list[str]:
    """What is wrong with a Dockerfile; [] if it may be built."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    wrong = unsafe(lines)
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    if bases != [f"rayproject/ray:{ray_pin()}-py311-gpu"]:
        wrong.append(f"base: {bases}")
    for line in lines:
        word, rest = line.split(maxsplit=1)
        if word not in ("FROM", "COPY", "RUN"):
            wrong.append(f"unknown: {line}")
        if re.search(r"curl|wget|\bADD\b|https?://|index-url|git\+|apt(-get)? ", rest):
            wrong.append(f"fetched: {line}")
        for command in rest.split("&&"):
            if "pip install" in command and not re.search(r"-r \S*requirements\.txt|--no-deps", command):
                wrong.append(f"not pinned: {command}")
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            wrong += [f"copies {source}" for source in sources if source == "." or not (ROOT / source).exists()]
    return wrong


def test_the_pins_are_what_pyproject_asks_for():
    assert wrong_pins(PINS) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("torch==2.15.0", "torch>=2.15.0", "torch: no single version"),
        ("torch==2.15.0", "torch", "torch: no single version"),
        ("torch==2.15.0", "torch==2.*", "torch: no single version"),
        ("torch==2.15.0", "torch==2.8.0", "torch==2.8.0 is not"),
        ("torch==2.15.0\n", "", "torch: missing"),
        ("s3fs==2026.9.0\n", "", "s3fs: missing"),
        ("torch==2.15.0", "torch==2.15.0\ntorch==2.14.0", "torch: twice"),
        ("torch==2.15.0", "torch==2.15.0\ntransformers==5.0.0", "transformers: not asked for"),
        ("==2.60.0", "==2.63.0", "ray: not the base image's"),
        ("==2.60.0", "==2.64.0", "==2.64.0 is not"),
        ("[default,train,data]", "[train,data]", "==2.60.0 is not"),
    ],
)
def test_a_wrong_pin_is_caught(old, new, said):
    assert old in PINS
    assert any(said in wrong for wrong in wrong_pins(PINS.replace(old, new)))


def test_the_dockerfile_fetches_nothing_that_moves():
    assert wrong_lines(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ray:2.60.0-py311-gpu", "ray:latest-gpu", "base"),
        ("ray:2.60.0-py311-gpu", "ray:2.61.0-py311-gpu", "base"),
        ("rayproject/ray:2.60.0-py311-gpu", "python:3.11", "base"),
        ("RUN python", "RUN curl -fsSL https://x.example/i.sh | bash && python", "fetched"),
        ("RUN python", "RUN apt-get update && python", "fetched"),
        ("pip install", "pip install --extra-index-url https://x.example", "fetched"),
        ("pip install", "pip install wandb && python -m pip install", "not pinned"),
        ("-r /home/ray/raydd/cluster/requirements.txt", "torch", "not pinned"),
        ("RUN python", "USER root\nRUN python", "unknown"),
        ("RUN python", "ENV RAY_AUTH_TOKEN=" + "0f" * 20 + "\nRUN python", "secret"),
        ("COPY --chown=1000:100 jobs", "COPY --chown=1000:100 .", "copies ."),
        ("COPY --chown=1000:100 jobs", "COPY --chown=1000:100 job", "copies job"),
        ("COPY --chown", "ADD --chown", "unknown"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_caught(old, new, said):
    assert old in DOCKERFILE
    wrong = wrong_lines(DOCKERFILE.replace(old, new))
    assert any(said in line for line in wrong), wrong


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_holds_secrets_or_places_not_even_in_comments(path):
    assert unsafe(path.read_text().splitlines()) == []
