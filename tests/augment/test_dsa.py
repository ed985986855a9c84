"""DSA: each group against a plain reference and its range, siamese parameters, resting generators, gradients."""

import math

import numpy as np
import pytest
import torch

from raydd.augment.dsa import COLUMNS, GROUPS, Dsa, apply_dsa, draw_dsa

SIZE = 16


def parameters(count=8, groups=GROUPS, seed=0):
    return Dsa(np.random.default_rng(seed).random((count, COLUMNS)), groups)


def test_color_against_reference():
    x, dsa = torch.randn(8, 3, SIZE, SIZE, dtype=torch.float64), parameters(groups=("color",))
    for image, result, u in zip(x, apply_dsa(x, dsa), dsa.uniform):
        image = image + (u[0] - 0.5)
        mean = image.mean(0)
        image = 2 * u[1] * (image - mean) + mean
        image = (u[2] + 0.5) * (image - image.mean()) + image.mean()
        assert torch.allclose(result, image)


def test_crop_translates_with_zero_fill():
    dsa = parameters(200, ("crop",))
    ramp = (torch.arange(SIZE * SIZE).view(1, 1, SIZE, SIZE) + 1).expand(200, 3, -1, -1).double()
    shifts = set()
    for result, u in zip(apply_dsa(ramp, dsa), dsa.uniform):
        dy, dx = (int(v * 5) - 2 for v in u[3:5])
        shifts.add((dy, dx))
        for y, x in ((0, 0), (7, 9), (SIZE - 1, SIZE - 1)):
            inside = 0 <= y + dy < SIZE and 0 <= x + dx < SIZE
            assert result[0, y, x] == (ramp[0, 0, y + dy, x + dx] if inside else 0)
    assert len(shifts) == 25


def test_cutout_is_half_the_side_clipped():
    dsa = parameters(500, ("cutout",))
    holes = 1 - apply_dsa(torch.ones(500, 3, SIZE, SIZE), dsa)[:, 0]
    heights, widths = holes.amax(2).sum(1), holes.amax(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)
    assert heights.max() == widths.max() == SIZE // 2 and heights.min() == SIZE // 4
    # Centers are uniform on 0 .. 16, so a hole keeps its full height for 9 of 17 of them.
    assert abs((heights == SIZE // 2).double().mean() - 9 / 17) < 0.1


def test_flip_half_of_them():
    x = torch.randn(400, 3, SIZE, SIZE)
    result = apply_dsa(x, parameters(400, ("flip",)))
    flipped = (result == x.flip(-1)).all(-1).all(-1).all(-1)
    same = (result == x).all(-1).all(-1).all(-1)
    assert (flipped | same).all() and abs(flipped.double().mean() - 0.5) < 0.1


@pytest.mark.parametrize("group", ["scale", "rotate"])
def test_affine_groups_move_coordinates(group):
    """A linear image of coordinates is mapped to the mapped coordinates, wherever nothing leaves the frame."""
    axis = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dsa = parameters(32, (group,))
    result = apply_dsa(torch.stack([x, y, x + y]).expand(32, -1, -1, -1), dsa)
    middle = slice(SIZE // 2 - 4, SIZE // 2 + 4)
    for image, u in zip(result, dsa.uniform):
        if group == "scale":
            sx, sy = 1 / 1.2 + u[8:10] * (1.2 - 1 / 1.2)
            assert min(sx, sy) >= 1 / 1.2 and max(sx, sy) <= 1.2
            expected = torch.stack([sx * x, sy * y])
        else:
            t = math.radians(15) * (2 * u[10] - 1)
            expected = torch.stack([math.cos(t) * x - math.sin(t) * y, math.sin(t) * x + math.cos(t) * y])
        assert torch.allclose(image[:2, middle, middle], expected[:, middle, middle], atol=1e-9)


def test_siamese_parameters_act_alike_on_any_batch():
    dsa = draw_dsa(np.random.default_rng(5), 1, "all")
    x = torch.randn(1, 3, SIZE, SIZE)
    assert torch.allclose(apply_dsa(x.expand(7, -1, -1, -1), dsa), apply_dsa(x, dsa).expand(7, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize("group", GROUPS[1:])
def test_two_batches_get_the_same_geometry(group):
    """Coordinates written into two channels move alike, whatever the other content of a batch and its size."""
    axis = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    dsa = Dsa(np.full((1, COLUMNS), 0.3), (group,))
    batches = [torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64) for count in (2, 5)]
    for batch in batches:
        batch[:, :2] = coordinates
    small, large = (apply_dsa(batch, dsa)[:, :2] for batch in batches)
    assert torch.equal(small[:1].expand(5, -1, -1, -1), large) and not torch.equal(large[0], coordinates)


def test_one_group_is_uniform_and_all_is_all():
    drawn = [draw_dsa(np.random.default_rng(i)).groups for i in range(1200)]
    counts = [drawn.count((group,)) for group in GROUPS]
    assert sum(counts) == 1200 and min(counts) > 140
    assert draw_dsa(np.random.default_rng(0), form="all").groups == GROUPS
    with pytest.raises(ValueError, match="expected 'one' or 'all'"):
        draw_dsa(np.random.default_rng(0), form="some")


def test_global_generators_rest():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    apply_dsa(torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator()), draw_dsa(np.random.default_rng(0), 2, "all"))
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


def test_gradient_flows_through_every_group():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: apply_dsa(v, parameters(2)), x)


def test_crop_of_uniforms_that_round_up_to_one_stays_inside():
    images = torch.rand(2, 3, 16, 16)
    # 1 - 2^-27 is 1 in single precision, where images live.
    cropped = apply_dsa(images, Dsa(np.full((2, 11), 1 - 2**-27), ("crop",)))
    assert torch.equal(cropped[:, :, :-2, :-2], images[:, :, 2:, 2:])
    assert not cropped[:, :, -2:].any()
