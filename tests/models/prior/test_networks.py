"""Fresh denoisers predict zero, depend on nothing but the seed, and know a null label."""

import pytest
import torch

from raydd.errors import UserError
from raydd.models.prior.networks import DiTShape, UNetShape, build_denoiser

SHAPES = [UNetShape((8, 16), attention=(1,)), DiTShape(depth=1, heads=1, patch=2)]


@pytest.mark.parametrize("shape", SHAPES, ids=["unet", "dit"])
def test_fresh_networks(shape):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net, same, other = (build_denoiser(shape, channels=1, size=8, num_classes=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before) and not net.training
    states = [torch.cat([p.flatten() for p in n.parameters()]) for n in (net, same, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    x, times = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    out = net(x, times, class_labels=torch.tensor([0, 1, 2, 3]), return_dict=False)[0]
    assert out.shape == x.shape and out.abs().max() == 0
    with pytest.raises(IndexError):
        net(x, times, class_labels=torch.tensor([0, 1, 2, 4]))


def test_sizes_that_do_not_divide():
    for shape in (UNetShape((8, 16, 16)), DiTShape(depth=1, heads=1, patch=4)):
        with pytest.raises(UserError, match="do not divide by 4"):
            build_denoiser(shape, channels=1, size=6, num_classes=3, seed=0)
