"""The lists are those of the literature, an index finds its class however a source names and orders its 1,000, and a
source that does not tell is refused; subsets read the same in every layout, split and process."""

import pickle

import numpy as np
import pytest
from small_set import image_bytes, parquet_bytes, write_files
from torchvision.datasets import Imagenette
from torchvision.models import ResNet18_Weights

from raydd.data.source import check_same_classes, open_source, open_validation, source_exists
from raydd.data.subsets import ALIASES, ALL, KNOWN, SUBSETS, WNIDS, subset_labels, subset_name
from raydd.errors import UserError
from raydd.store import filesystem as files

ENGLISH = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
# ld3m.md, section 7: first and last class of a list.
ENDS = {
    "imagenet-a": ("Leonberg", "limpkin"),
    "imagenet-b": ("spoonbill", "ruddy turnstone"),
    "imagenet-c": ("freight car", "goldfinch"),
    "imagenet-d": ("ostrich", "ringlet"),
    "imagenet-e": ("spindle", "lycaenid"),
    "imagenette": ("tench", "parachute"),
    "imagewoof": ("Australian terrier", "Old English sheepdog"),
    "imagemeow": ("tabby", "lynx"),
    "imagesquawk": ("peacock", "sulphur-crested cockatoo"),
    "imagefruit": ("pineapple", "Granny Smith"),
}


def wordnet_ids() -> list[str]:
    """1,000 ids in ascending order: the known ones at their indices, made-up ones between them."""
    ids, last = [], 1440763
    for index in range(ALL):
        last = int(KNOWN[index][1:]) if index in KNOWN else last + 1
        ids.append(f"n{last:08d}")
    return ids


WORDNET = wordnet_ids()


def parquet_set(labels) -> bytes:
    """One row per label; its image is the number of the row."""
    return parquet_bytes([(int(label), f"{i}", b"%d" % i) for i, label in enumerate(labels)], ENGLISH, 97)


def read(source) -> list[tuple[int, bytes]]:
    tables = [pickle.loads(pickle.dumps(unit)).read() for unit in source.units(rows=50)]
    return sorted((row["label"], row["bytes"]) for table in tables for row in table.to_pylist())


@pytest.mark.parametrize("name", SUBSETS)
def test_each_has_ten_distinct_classes(name):
    indices = SUBSETS[name]
    assert len(indices) == len(set(indices)) == 10 and all(0 <= index < ALL for index in indices)


@pytest.mark.parametrize("name", ENDS)
def test_first_and_last_class_are_the_papers(name):
    assert (ENGLISH[SUBSETS[name][0]], ENGLISH[SUBSETS[name][-1]]) == ENDS[name]


def test_ids_of_the_two_published_trees():
    assert WNIDS["imagenette"].split() == sorted(Imagenette._WNID_TO_CLASS)
    names = {wnid: names[0] for wnid, names in Imagenette._WNID_TO_CLASS.items()}
    assert all(names[wnid] == ENGLISH[index] for index, wnid in KNOWN.items() if wnid in names)
    # ImageNet's order is that of the ids: one wrong id or index would break it.
    assert len(KNOWN) == 20 and [KNOWN[index] for index in sorted(KNOWN)] == sorted(KNOWN.values())
    assert sorted(set(WORDNET)) == WORDNET and len(WORDNET) == ALL


def test_names_and_aliases():
    assert subset_name("ImageNette") == subset_name("nette") == "imagenette"
    assert subset_name("cats") == "imagemeow" and subset_name("birds") == "imagesquawk"
    assert set(ALIASES.values()) <= SUBSETS.keys() and not ALIASES.keys() & SUBSETS.keys()
    with pytest.raises(UserError, match=r"unknown ImageNet subset 'imagenete': did you mean 'imagenette'\?"):
        subset_name("imagenete")


ORDERS = {
    "ids": WORDNET,
    "ids and names": [f"{wnid} {name}" for wnid, name in zip(WORDNET, ENGLISH)],
    "ids backward": WORDNET[::-1],
    "numbers": [str(i) for i in range(ALL)],
    "numbers as folders": sorted(str(i) for i in range(ALL)),
    "English": ENGLISH,
    "numbered names": [f"{i:03d} {name}" for i, name in enumerate(ENGLISH)],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["imagewoof", "imagenet-a"])
def test_an_index_finds_its_class(order, name):
    classes = ORDERS[order]
    index_of = {"ids backward": lambda i: ALL - 1 - i, "numbers as folders": lambda i: int(classes[i])}
    labels = subset_labels("x", name, classes)
    assert tuple(index_of.get(order, int)(label) for label in labels) == SUBSETS[name]


@pytest.mark.parametrize(
    "classes",
    [
        sorted(ENGLISH),
        [str(i) for i in range(1, ALL + 1)],
        [f"n{i:08d}" for i in range(ALL)],
        [*WORDNET[:300], *WORDNET[301:], "n99999999"],
    ],
    ids=["alphabetical", "from 1", "other ids", "one id of another set"],
)
def test_an_order_that_is_not_imagenets_is_refused(classes):
    with pytest.raises(UserError, match=r"#imagenet-a: the classes of x .* are not in ImageNet-1K's order"):
        subset_labels("x", "imagenet-a", classes)


def test_fewer_classes_are_refused_but_for_the_two_published_trees():
    with pytest.raises(UserError, match=r"#imagenet-a needs all 1,000 .* x has 999: leave #imagenet-a out"):
        subset_labels("x", "imagenet-a", WORDNET[:-1])
    woof = sorted(WNIDS["imagewoof"].split())
    assert [woof[label] for label in subset_labels("x", "imagewoof", woof)] == WNIDS["imagewoof"].split()
    for classes in (woof, [f"dog {i}" for i in range(10)]):
        with pytest.raises(UserError, match=r"#imagenette needs all 1,000 classes of ImageNet; x has 10"):
            subset_labels("x", "imagenette", classes)


def test_a_parquet_source_is_cut_to_ten_classes(tmp_path):
    train, val = np.arange(3 * ALL) * 7 % ALL, np.arange(ALL)
    contents = {"train/a.parquet": parquet_set(train), "val/a.parquet": parquet_set(val)}
    root = write_files(tmp_path, contents)
    whole, source = open_source(root), open_source(f"{root}#woof")
    expected = [(k, b"%d" % i) for k, index in enumerate(SUBSETS["imagewoof"]) for i in np.flatnonzero(train == index)]
    assert read(source) == sorted(expected) and len(source) == 30 and source.counts() == (3,) * 10
    assert source.classes == tuple(ENGLISH[index] for index in SUBSETS["imagewoof"])
    assert source.uri == f"{root}#imagewoof" and source.root == whole.root
    assert len({whole.fingerprint, source.fingerprint, open_source(f"{root}#nette").fingerprint}) == 3
    # What workers do: open again by name; keys are those of the whole.
    assert open_source(source.uri, source.split) == source
    keys = source.index()["key"].to_pylist()
    assert {r.key: r.data for r in source.read(keys)} == {r.key: r.data for r in whole.read(keys)}
    held_out = open_validation(f"{root}#imagewoof")
    check_same_classes(source, held_out)
    assert read(held_out) == [(k, b"%d" % index) for k, index in enumerate(SUBSETS["imagewoof"])]
    assert held_out == open_source(f"{root}#woof", "val") and held_out.root != source.root


def test_image_folders(tmp_path):
    picture = image_bytes("one")
    root = write_files(tmp_path, {f"{wnid}/{wnid}_{i}.png": picture for wnid in WORDNET[:2] for i in range(2)})
    for wnid in WORDNET[2:]:
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "1.png").write_bytes(picture)
    source = open_source(f"{root}#imagenette")
    assert source.kind == "imagefolder" and list(source.classes) == WNIDS["imagenette"].split()
    assert source.counts() == (2, *[1] * 9)
    assert source.index()["key"].to_pylist()[:3] == [
        "n01440764/n01440764_0.png",
        "n01440764/n01440764_1.png",
        f"{source.classes[1]}/1.png",
    ]
    assert [unit.label for unit in source.units()] == list(range(10))
    # A list of all classes lets their folders be empty.
    files.remove_tree(f"{root}/{WORDNET[500]}")
    with pytest.raises(UserError, match="has 999"):
        open_source(f"{root}#fruit")
    (tmp_path / "classes.txt").write_text("\n".join(WORDNET))
    fruit = open_source(f"{root}#fruit")
    assert fruit.classes == tuple(WORDNET[index] for index in SUBSETS["imagefruit"])
    # In wnid order on disk, labels in the subset's.
    assert [unit.label for unit in fruit.units()] == np.argsort(SUBSETS["imagefruit"]).tolist()


def test_a_published_tree_alone_takes_the_subsets_order(tmp_path):
    woof = WNIDS["imagewoof"].split()
    root = write_files(tmp_path, {f"train/{wnid}/{wnid}.png": wnid.encode() for wnid in woof})
    assert open_source(root).classes == tuple(sorted(woof))
    assert read(open_source(f"{root}#imagewoof")) == [(k, wnid.encode()) for k, wnid in enumerate(woof)]
    with pytest.raises(UserError, match="#imagenette needs all 1,000 classes"):
        open_source(f"{root}#imagenette")


def test_a_path_with_a_mark_stays_a_path(tmp_path):
    files_of = {f"{wnid}/1.png": b"x" for wnid in WNIDS["imagenette"].split()}
    root = write_files(tmp_path / "set#imagewoof", files_of)
    source = open_source(root)
    assert source.uri == root and len(source.classes) == 10
    assert open_source(f"{root}#imagenette").uri == f"{root}#imagenette"
    with pytest.raises(UserError, match=r"set#2/none does not exist"):
        open_source(str(tmp_path / "set#2" / "none"))


def test_what_is_not_there_or_not_imagenet(tmp_path):
    with pytest.raises(UserError, match="nothing does not exist"):
        open_source(str(tmp_path / "nothing#imagenette"))
    with pytest.raises(UserError, match="did you mean 'imagenet-a'"):
        open_source(str(tmp_path / "nothing#imagenet_a"))
    with pytest.raises(UserError, match="digits has 10"):
        open_source("digits#imagenette")
    root = write_files(tmp_path, {"a.parquet": parquet_set([5] * 3)})
    with pytest.raises(UserError, match="#imagenette is empty"):
        open_source(f"{root}#imagenette")


def test_whether_a_source_is_there(tmp_path):
    (tmp_path / "a#b").mkdir()
    (tmp_path / "c").mkdir()
    there = [str(tmp_path / name) for name in ("a#b", "c", "c#imagenette")]
    assert all(map(source_exists, [*there, "digits"])) and not source_exists(str(tmp_path / "d#imagenette"))
