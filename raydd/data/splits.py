"""Where in a path the labeled images lie: the path itself, a folder such as `train`, or files named `train-*.parquet`.

A source's root (its leaf) is the directory that holds one split; keys are relative to it, so that they are the same
whether the leaf or its parent was named. A class may be called `train`: a directory counts as a parent of splits only
if both a training and a validation folder lie in it, or a single one that itself holds no images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raydd.data import digits, parquet, webdataset
from raydd.data.decode import SUFFIXES
from raydd.errors import UserError
from raydd.store import filesystem as files

ROLES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
SHARDS = (parquet.SUFFIX, webdataset.SUFFIX, *webdataset.COMPRESSED)


@dataclass(frozen=True)
class Leaf:
    """One split: `root` (URI, or `digits/train`), the split's role or None, and the bytes of its files."""

    root: str
    split: str | None
    sizes: Mapping[str, int] = field(repr=False)

    @property
    def class_list_places(self) -> tuple[str, ...]:
        """Directories (URIs) in which a class list is looked for: the root, and its parent if that holds splits."""
        root = digits.locate(self.root)
        parent, _, name = root.rpartition("/")
        return (root, parent) if role_of(name) else (root,)


def role_of(name: str) -> str | None:
    """`train` or `val` for a folder or file prefix that means it, else None."""
    return next((role for role, names in ROLES.items() if name.lower() in names), None)


def find_leaf(uri: str, split: str | None, *, as_is: bool) -> Leaf:
    """The part of `uri` (as `absolute` gives it) that holds `split`.

    A path without splits serves any `split` if `as_is`, else only the one that its own name says. Raises `UserError`
    for a path that does not exist, lacks the split, or holds several of which none was chosen.
    """
    root = digits.locate(uri)
    if root.lower().endswith(SHARDS) and files.is_file(root):
        parent, _, name = root.rpartition("/")
        return _whole(uri, parent, {name: files.size(root)}, split, as_is)
    folders, names = files.list_directory(root)
    if not folders and not names:
        raise UserError(_nothing_at(uri))
    if _holds_splits(root, folders):
        folder = _pick(uri, split, folders)
        return Leaf(files.join(uri, folder), role_of(folder) or split, _visible_sizes(files.join(root, folder)))
    sizes = _visible_sizes(root)
    prefixes = sorted({prefix for path in sizes if (prefix := _prefix(path))})
    if len({role_of(prefix) for prefix in prefixes}) > 1:
        prefix = _pick(uri, split, prefixes)
        return Leaf(uri, role_of(prefix), {path: n for path, n in sizes.items() if _prefix(path) == prefix})
    return _whole(uri, uri, sizes, split, as_is)


def _whole(uri: str, root: str, sizes: Mapping[str, int], split: str | None, as_is: bool) -> Leaf:
    """The leaf that has no parts: its role is that of its own name, or of its files' prefix."""
    roles = [role_of(root.rpartition("/")[2]), *(role_of(_prefix(path) or "") for path in sizes)]
    own = next(filter(None, roles), None)
    if not as_is and split not in (own, root.rpartition("/")[2]):
        raise UserError(_no_split(uri, split, [own or "images without a split"]))
    return Leaf(root, own if split == own else None, sizes)


def _holds_splits(root: str, folders: list[str]) -> bool:
    roles = [role_of(folder) for folder in folders]
    if "train" in roles and "val" in roles:
        return True
    named = [folder for folder, role in zip(folders, roles) if role]
    if len(named) != 1:
        return False
    inside = files.list_directory(files.join(root, named[0]))[1]
    return not any(name.lower().endswith(SUFFIXES) for name in inside)


def _pick(uri: str, split: str | None, names: Iterable[str]) -> str:
    """The one of `names` that stands for `split`; the order of `ROLES` decides between several."""
    found = {name.lower(): name for name in names if role_of(name)}
    if split is None:
        raise UserError(f"{uri} holds several splits ({', '.join(sorted(found))}): choose one, such as {uri}/train")
    for wanted in ROLES.get(split, (split,)):
        if wanted in found:
            return found[wanted]
    raise UserError(_no_split(uri, split, sorted(found)))


def _prefix(path: str) -> str | None:
    """Role word that opens a shard's file name, as in `train-00000-of-00004.parquet` or `val_000.tar`."""
    name = path.rsplit("/", 1)[-1].lower()
    word = name.replace("_", "-").replace(".", "-").split("-", 1)[0]
    return word if name.endswith(SHARDS) and role_of(word) else None


def _visible_sizes(root: str) -> dict[str, int]:
    sizes = files.list_sizes(root)
    return {path: size for path, size in sizes.items() if not f"/{path}".count("/.") and "__MACOSX" not in path}


def _nothing_at(uri: str) -> str:
    if files.exists(uri):
        return f"{uri} is empty or no directory: expected class folders, Parquet files or WebDataset tars"
    near = f"did you mean {digits.NAME!r}? " if uri.rsplit("/", 1)[-1].lower() in ("digit", "digits") else ""
    return f"{uri} does not exist: {near}expected a directory or URI of class folders, *.parquet or *.tar, or 'digits'"


def _no_split(uri: str, split: str | None, found: list[str]) -> str:
    names = ROLES.get(split or "", (split,))
    return (
        f"{uri} has no {split} images (found: {', '.join(found)}): "
        f"expected a folder {' or '.join(map(str, names))} in it; make one, or name the directory of those images"
    )
