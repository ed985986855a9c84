"""A source: labeled images at a local path or any fsspec URI, listed once and then read in units or by key.

`open_source` finds the layout by looking: the one of ImageFolder, Parquet and WebDataset that holds most bytes. What a
source knows is one Arrow table (see `listing.py`); units and sources are small frozen values that pickle, so that Ray
tasks read them on any node. Nothing is decoded here, and a broken image is never an error: it arrives as empty or odd
bytes and is dropped where it is decoded (`decode.py`).

A URI that ends in `#NAME` is an ImageNet subset of the source before the mark (`subsets.py`): its ten classes in the
subset's order, and no other image.

Keys are unique within a split and relative to it: the same whether `SRC/train` or `SRC` was opened.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydd.data import digits, imagefolder, parquet, webdataset
from raydd.data.listing import Listing, check_listing, fingerprint, read_class_names
from raydd.data.splits import Leaf, find_leaf
from raydd.data.subsets import narrow, subset_labels, subset_name
from raydd.errors import UserError
from raydd.store import filesystem as files
from raydd.store.reach import Unreachable, scheme

LAYOUTS = {"imagefolder": imagefolder, "parquet": parquet, "webdataset": webdataset}
# A Parquet row group is read whole anyway, so a unit takes all of it up to this many times the wanted rows.
WHOLE_GROUP = 4
# A listing whose equal labels stand in runs of this mean length counts as sorted by class.
SORTED_RUN = 32


@dataclass(frozen=True)
class Record:
    """One undecoded image."""

    key: str
    label: int
    data: bytes


@dataclass(frozen=True)
class SourceUnit:
    """Some images that are read together: the piece of work that is scheduled, retried and checkpointed.

    `name` is a hash of the keys, `label` the class if there is only one, `n` images, `nbytes` their encoded size.
    """

    name: str
    label: int | None
    n: int
    nbytes: int
    kind: str
    root: str
    rows: pa.Table = field(repr=False, compare=False)

    def read(self) -> pa.Table:
        """Table key string, label int32, bytes large_binary [n]; bytes are empty for an image that is unreadable.

        Raises `Unreachable` when the place itself cannot be reached, so that an outage drops no images.
        """
        contents = LAYOUTS[self.kind].fetch(digits.locate(self.root), self.rows)
        names = ["key", "label", "bytes"]
        return pa.table([self.rows["key"], self.rows["label"], pa.array(contents, pa.large_binary())], names)


@dataclass(frozen=True)
class Source:
    """One split of a labeled image set.

    `uri` and `split` open it again; `classes` are the names in label order; `fingerprint` hashes the listing, not the
    place; `mislabeled` are the (key, reason) of images left out because they have no usable label.
    """

    uri: str
    kind: str
    split: str | None
    classes: tuple[str, ...]
    fingerprint: str
    mislabeled: tuple[tuple[str, str], ...] = field(repr=False)
    root: str = field(repr=False, compare=False)
    listing: pa.Table = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.listing.num_rows

    def index(self) -> pa.Table:
        """Key and label (int32) of every image."""
        return self.listing.select(["key", "label"])

    def counts(self) -> tuple[int, ...]:
        """Images per class, in label order, before any broken one is dropped."""
        return tuple(np.bincount(self.listing["label"].to_numpy(), minlength=len(self.classes)).tolist())

    def units(self, rows: int = 256, keys: Collection[str] | None = None) -> list[SourceUnit]:
        """Cut the images (or those of `keys`) into units of about `rows`.

        Units hold one class where the listing is grouped by class, and never cut a Parquet row group that is up to
        four times as large. Raises `KeyError` for a key that is not in the source.
        """
        listing = self.listing if keys is None else self.listing.take(pa.array(np.sort(self._find(list(keys)))))
        label = listing["label"].to_numpy()
        by_class = self.kind == "imagefolder" or _is_sorted(label)
        most = rows * WHOLE_GROUP if self.kind == "parquet" else rows
        spans = _cut(listing["block"].to_numpy(), label if by_class else np.zeros_like(label), rows, most)
        return [self._unit(listing.take(pa.array(np.arange(start, stop)))) for start, stop in spans]

    def read(self, keys: Sequence[str]) -> Iterator[Record]:
        """The images of a few chosen keys, in that order. Raises `KeyError` for an unknown key."""
        found = self._find(keys)
        for start in range(0, len(found), 256):
            table = self._unit(self.listing.take(pa.array(found[start : start + 256]))).read()
            for key, label, data in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
                yield Record(key, label, data)

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        found = pc.index_in(pa.array(keys, pa.string()), self.listing["key"])
        if found.null_count:
            missing = keys[found.is_null().index(True).as_py()]
            raise KeyError(f"{missing!r} is no key of {self.uri}")
        return found.to_numpy().astype(np.int64)

    def _unit(self, rows: pa.Table) -> SourceUnit:
        name = hashlib.blake2b("\0".join(rows["key"].to_pylist()).encode(), digest_size=8).hexdigest()
        labels = np.unique(rows["label"].to_numpy())
        label = int(labels[0]) if len(labels) == 1 else None
        nbytes = int(np.maximum(rows["nbytes"].to_numpy(), 0).sum())
        return SourceUnit(name, label, rows.num_rows, nbytes, self.kind, self.root, rows)


def open_source(uri: str, split: str | None = "train") -> Source:
    """Open `uri` (a path, a URI or `digits`), or the part of it that `split` names; None takes `uri` as it is.

    A path without splits serves as is for `train`. Raises `UserError`, in one line with a remedy, for what is no
    source, is empty, lacks the split, has one class or no usable labels, or cannot be reached.
    """
    return _open(uri, split, as_is=split in (None, "train"))


def open_validation(uri: str) -> Source:
    """Open the validation part of `uri`, or `uri` itself where it has no splits: for paths named as validation data."""
    return _open(uri, "val", as_is=True)


def check_same_classes(source: Source, other: Source) -> None:
    """Raise `UserError` unless two sources have the same class names in the same order."""
    if source.classes == other.classes:
        return
    if len(source.classes) != len(other.classes):
        raise UserError(
            f"{source.uri} has {len(source.classes)} classes but {other.uri} has {len(other.classes)}: "
            "use splits of one data set, or give both the same classes.txt"
        )
    i, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(source.classes, other.classes)) if a != b)
    raise UserError(
        f"class {i} is {a!r} in {source.uri} but {b!r} in {other.uri}: put one classes.txt with the right order in both"
    )


def source_exists(uri: str) -> bool:
    """Whether there is anything at the place of a source, without listing it."""
    place, _ = _split_subset(uri)
    return place == digits.NAME or files.exists(place)


def _open(uri: str, split: str | None, *, as_is: bool) -> Source:
    place, subset = _split_subset(uri)
    place = place if place == digits.NAME or place.startswith(f"{digits.NAME}/") else files.absolute(place)
    leaf = find_leaf(place, split, as_is=as_is)
    kind = _find_kind(place, leaf.sizes)
    listing = check_listing(place, _list(kind, leaf))
    if subset:
        listing = narrow(listing, subset_labels(place, subset, listing.classes))
        place = f"{place}#{subset}"
        check_listing(place, listing)
    return Source(
        uri=place,
        kind=kind,
        split=leaf.split,
        classes=listing.classes,
        fingerprint=fingerprint(listing),
        mislabeled=listing.mislabeled,
        root=leaf.root,
        listing=listing.rows,
    )


def _split_subset(uri: str) -> tuple[str, str | None]:
    """The place of a source, and the ImageNet subset of it that `uri` names behind a `#`, or None.

    A path that is there as it stands stays one, whatever marks it holds.
    """
    place, _, name = uri.rpartition("#")
    if not place or "/" in name or _is_path(uri):
        return uri, None
    return place, subset_name(name)


def _is_path(uri: str) -> bool:
    # A web server is never told what follows a mark, and would say yes.
    if scheme(uri) in files.READ_ONLY:
        return False
    try:
        return files.exists(uri)
    except Unreachable:
        # No bucket may have such a name; a place that is down says so when it is opened.
        return False


def _list(kind: str, leaf: Leaf) -> Listing:
    names = read_class_names(*leaf.class_list_places)
    return LAYOUTS[kind].list_images(digits.locate(leaf.root), leaf.sizes, names)


def _find_kind(uri: str, sizes: Mapping[str, int]) -> str:
    tests: dict[str, Callable[[str], bool]] = {
        "imagefolder": imagefolder.is_image,
        "parquet": lambda path: path.endswith(parquet.SUFFIX),
        "webdataset": lambda path: path.endswith((webdataset.SUFFIX, *webdataset.COMPRESSED)),
    }
    weights = {kind: sum(max(size, 1) for path, size in sizes.items() if test(path)) for kind, test in tests.items()}
    kind = max(weights, key=weights.__getitem__)
    if weights[kind]:
        return kind
    if any(imagefolder.is_image(f"/{path}") for path in sizes):
        raise UserError(
            f"{uri} holds images but no class folders: put the images of each class into a folder of its own"
        )
    raise UserError(f"{uri} is no source: expected class folders of images, *.parquet files or *.tar shards in it")


def _is_sorted(label: np.ndarray) -> bool:
    return len(label) >= SORTED_RUN * (1 + np.count_nonzero(np.diff(label)))


def _cut(block: np.ndarray, group: np.ndarray, rows: int, most: int) -> list[tuple[int, int]]:
    """Spans of a listing: neighbors of one `group`, up to `rows` from several blocks or up to `most` from one."""
    edges = np.flatnonzero(np.diff(block) | np.diff(group)) + 1
    segments = list(zip([0, *edges], [*edges, len(block)], strict=True)) if len(block) else []
    spans: list[tuple[int, int]] = []
    for start, stop in segments:
        if spans and group[spans[-1][0]] == group[start] and stop - spans[-1][0] <= rows:
            spans[-1] = (spans[-1][0], stop)
        elif stop - start <= most:
            spans.append((start, stop))
        else:
            pieces = np.linspace(start, stop, -(-(stop - start) // rows) + 1).astype(int)
            spans += zip(pieces[:-1].tolist(), pieces[1:].tolist(), strict=True)
    return spans
