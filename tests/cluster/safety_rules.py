"""What no file of cluster/ may hold: secrets, one person's paths, open addresses, images that move."""

import re
from collections.abc import Iterator
from typing import Any

from cluster_files import ray_pin

SECRETS = (
    r"\bAKIA[0-9A-Z]{16}\b",
    r"PRIVATE KEY",
    r"\bhf_\w{20,}",
    r"\b[0-9a-f]{32,}\b",
    r"(?i)\b(?:password|secret|access_key|auth_token)\b\s*[=:]\s*[^\s/~$]",
)
# A container's home is no person's.
PLACES = r"(?:/root|/Users/|/home/(?!ray\b)|/work/|/mnt/|[A-Z]:\\)"
IMAGE = re.compile(r"\b\w[\w./-]*/(?:raydd|ray)[:@][\w.-]+")


def leaves(value: Any) -> Iterator[str]:
    """Every key and value below, as text."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield str(name)
            yield from leaves(below)
    elif isinstance(value, list):
        for below in value:
            yield from leaves(below)
    else:
        yield str(value)


def unsafe(config: Any) -> list[str]:
    """What is wrong, wherever it stands."""
    found = []
    for text in leaves(config):
        found += [f"secret: {text[:30]}" for pattern in SECRETS if re.search(pattern, text)]
        if re.search(PLACES, text):
            found.append(f"path of one machine: {text}")
        if "0.0.0.0" in text or re.search(r"--dashboard-host(?!=127\.0\.0\.1\b)", text):
            found.append(f"open to every address: {text}")
        found += [f"image {image} is not Ray {ray_pin()}" for image in IMAGE.findall(text) if not _is_pinned(image)]
    return found


def _is_pinned(image: str) -> bool:
    return re.fullmatch(rf".*:{re.escape(ray_pin())}(?:-py\d+-gpu)?", image) is not None
