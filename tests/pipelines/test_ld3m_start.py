"""Where a pack of LD3M starts: a keyed sample of real images, or noise of their size; broken ones are stood in for."""

import pytest
import torch
from pipelines.conftest import digit_bytes, write_tree
from pipelines.small_ld3m import PIXELS, SIZE, kept, made, options, prepared

from raydd.data.decode import decode_image
from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.errors import Unfinished
from raydd.keyed import smallest
from raydd.models.prior.pipeline import load_prior
from raydd.pipelines.request import open_job


def test_latents_start_from_a_keyed_sample_of_the_class(digits_tree, tmp_path, small_prior):
    _, start, work = prepared(digits_tree, tmp_path, small_prior)
    wanted, prior = [], load_prior(small_prior, classes=("0", "1", "2"))
    for label in (0, 1):
        keys = work.job.keys(label)
        wanted += [keys[i] for i in smallest(keys, 2, 0, "start", str(label))]
    assert start.keys == [(key,) for key in wanted] and len(set(wanted)) == 4
    found = load_images(open_source(str(digits_tree)), SIZE, keys=wanted)
    images = torch.stack([found.images[found.keys.index(key)] for key in wanted])
    assert torch.equal(start.pictures, images) and torch.equal(start.z, prior.encode(images))
    assert torch.equal(start.c, prior.conditions(torch.tensor([0, 0, 1, 1]))) and not torch.equal(
        start.c[0], start.c[2]
    )


def test_the_start_does_not_depend_on_the_pack(digits_tree, tmp_path, small_prior):
    for init in ("real", "gaussian"):
        _, alone, _ = prepared(digits_tree, tmp_path, small_prior, pack=1, chunk=1, init=init)
        _, both, _ = prepared(digits_tree, tmp_path, small_prior, init=init)
        assert torch.equal(alone.c, both.c[2:]) and alone.keys == both.keys[2:]
        if init == "real":
            assert torch.equal(alone.z, both.z[2:])


def test_gaussian_latents_are_of_the_size_of_real_ones(digits_tree, tmp_path, small_prior):
    ask = {"ipc": 16}
    _, start, _ = prepared(digits_tree, tmp_path, small_prior, ask=ask, init="gaussian", chunk=16)
    _, real, _ = prepared(digits_tree, tmp_path, small_prior, ask=ask, chunk=16)
    assert start.pictures is None and start.keys == [()] * 16
    sizes = [float(value.square().mean().sqrt()) for value in (start.z, real.z)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert float(start.z.mean().abs()) < 0.1 < sizes[0] and len(start.z.flatten().unique()) > 1000


def test_more_noise_than_real_images(tmp_path):
    """Latents that start from noise need one real image of the class, to be matched, not as many as are made."""
    tree = write_tree(tmp_path / "tree", train=1)
    manifest = made(tree, tmp_path / "run", ask={"ipc": 3}, init="gaussian", iterations=1, **PIXELS)
    assert manifest["counts"] == {"0": 3, "1": 3, "2": 3}
    assert kept(tmp_path / "run", 0).start is None


def test_broken_images_are_stood_in_for(tmp_path):
    """The next ones of the sample take their place, however many there are; the real side leaves them out too."""
    tree = write_tree(tmp_path / "tree")
    for i, data in enumerate(digit_bytes("train", 0, 60)):
        (tree / "train" / "0" / f"more-{i:02d}.png").write_bytes(data)
    job = open_job(options(tree, tmp_path / "x", ipc=1))
    keys = job.keys(0)
    order = [keys[i] for i in smallest(keys, len(keys), 0, "start", "0")]
    for key in order[:40]:
        (tree / "train" / key).write_bytes(b"broken")
    descent, start, _ = prepared(tree, tmp_path / "run", ask={"ipc": 1}, chunk=1, **PIXELS)
    assert start.keys == [(order[40],)] and len(descent.objective.reals[0]) == 36
    found = torch.tensor(decode_image((tree / "train" / order[40]).read_bytes(), SIZE)).permute(2, 0, 1)
    assert torch.equal(start.pictures[0], found)


def test_too_few_readable_images_fail_their_pack_only(tmp_path):
    tree = write_tree(tmp_path / "tree")
    for path in sorted((tree / "train" / "0").iterdir())[1:]:
        path.write_bytes(b"")
    with pytest.raises(Unfinished, match="class '0' has 1 readable images: use a lower --ipc"):
        made(tree, tmp_path / "run", **PIXELS)
    assert [path.name for path in (tmp_path / "run" / "distilled").glob("label=*")] == ["label=2"]
