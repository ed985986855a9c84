"""Configurations are values: frozen dataclasses with a content hash; presets are functions that return one."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from raydd.errors import choose


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as plain JSON values (tuples become lists)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


def content_hash(value: Any, length: int = 12) -> str:
    """First `length` hex digits of SHA-256 over the canonical JSON of `value`."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines `option: old -> new` for every leaf in which two configurations differ; long values are cut."""
    old, new = to_plain(old), to_plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted(old.keys() | new.keys()):
            lines += difference(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        return lines
    return [] if old == new else [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any, length: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_choices(config: Any) -> None:
    """Raise `UserError` for a field of a dataclass that is declared `Literal[...]` and holds another value."""
    for name, hint in get_type_hints(type(config)).items():
        options = [hint, *get_args(hint)]
        literals = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
        value = getattr(config, name)
        if literals and value is not None:
            choose(name, value, literals)
