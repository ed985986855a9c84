"""Draws of a pack are functions of (seed, purpose, class, image, iteration), whoever else is in it."""

import torch

from raydd.distill.ld3m.pack import Pack
from raydd.keyed import torch_rng

PACK = Pack(("ant", "bee", "cat"), (4, 1, 7), num_classes=9, ipc=2, seed=3)
SHAPE = (3, 4, 4)


def test_noise_is_keyed_by_class_image_and_iteration():
    noise = PACK.noise(SHAPE, "eps", 5)
    assert noise.shape == (6, *SHAPE) and noise.dtype == torch.float32
    for row, (name, index) in enumerate((name, index) for name in PACK.names for index in range(2)):
        assert torch.equal(noise[row], torch.randn(SHAPE, generator=torch_rng(3, "eps", name, index, 5)))
    assert len({float(draw.sum()) for draw in noise}) == 6


def test_noise_does_not_depend_on_the_rest_of_the_pack():
    whole = PACK.noise(SHAPE, "eps", 5)
    alone = Pack(("cat",), (0,), num_classes=3, ipc=1, seed=3).noise(SHAPE, "eps", 5)
    swapped = Pack(("cat", "ant"), (7, 4), num_classes=9, ipc=2, seed=3).noise(SHAPE, "eps", 5)
    assert torch.equal(alone[0], whole[4]) and torch.equal(swapped, whole[[4, 5, 0, 1]])


def test_other_keys_make_other_noise():
    other_seed = Pack(PACK.names, PACK.labels, PACK.num_classes, PACK.ipc, seed=4)
    draws = [PACK.noise(SHAPE, "eps", 5), PACK.noise(SHAPE, "eps", 6), PACK.noise(SHAPE, "eps")]
    draws += [PACK.noise(SHAPE, "export"), other_seed.noise(SHAPE, "eps", 5)]
    flat = torch.stack([draw.flatten() for draw in draws])
    assert len(flat.unique(dim=0)) == 5
    # Independent draws of 288 numbers: correlations of about 1 / sqrt(288) = 0.06.
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.25
    assert flat.mean().abs() < 0.1 and abs(flat.std() - 1) < 0.1


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    PACK.noise(SHAPE, "eps", 1)
    assert torch.equal(before, torch.get_rng_state())


def test_values_of_classes_are_repeated_for_their_images():
    assert PACK.each(PACK.labels).tolist() == [4, 4, 1, 1, 7, 7] and PACK.each(PACK.labels).dtype == torch.int64
    assert len(PACK) == 6


def test_names():
    assert PACK.name == "ant+2" and Pack(("ant",), (4,), 9, 2, 3).name == "ant"
