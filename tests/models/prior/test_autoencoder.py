"""Every kind of autoencoder gives diffusers' own latents, scaled and shifted, and the inverse on the way back."""

import numpy as np
import pytest
import torch
from tiny_networks import tiny_autoencoder

from raydd.errors import UserError
from raydd.models.prior.autoencoder import Latents, Pixels, to_uint8

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "VQModel"])
@torch.no_grad()
def test_latents(kind):
    net = tiny_autoencoder(kind).eval()
    space = Latents(net)
    assert (space.channels, space.factor) == (4, 2)
    mean, std = space.moments(IMAGES)
    assert mean.shape == (2, 4, 8, 8) and (std is not None) == (kind == "AutoencoderKL")
    encoded = net.encode(IMAGES.float() / 127.5 - 1)
    if kind == "AutoencoderKL":
        assert torch.allclose(mean, (encoded.latent_dist.mean - 0.1) * 0.2)
        assert torch.allclose(std, encoded.latent_dist.std * 0.2)
        raw = encoded.latent_dist.mean
    else:
        assert torch.allclose(mean, encoded.latents * {"AutoencoderTiny": 2.0, "VQModel": 0.18215}[kind])
        raw = encoded.latents
    assert torch.allclose(space.decode(mean), net.decode(raw).sample, atol=1e-5)


def test_pixels():
    mean, std = Pixels(3).moments(IMAGES)
    assert std is None and mean.min() >= -1 and mean.max() <= 1
    assert torch.equal(to_uint8(Pixels(3).decode(mean)), IMAGES)
    gray, _ = Pixels(1).moments(IMAGES)
    assert torch.allclose(gray, mean.mean(1, keepdim=True), atol=1e-6)
    assert Pixels(1).decode(gray).shape == IMAGES.shape
    with pytest.raises(UserError, match="4 channels and no autoencoder"):
        Pixels(4)


def test_quantized_latents_are_the_nearest_codes():
    net = tiny_autoencoder("VQModel").eval()
    # Codes as far apart as latents are.
    net.quantize.embedding.weight.data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    space = Latents(net)
    latents = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2)) * space.scale
    found = space.quantize(latents)
    codes = net.quantize.embedding.weight.detach() * space.scale
    for n, i, j in np.ndindex(2, 3, 3):
        place = latents[n, :, i, j]
        nearest = min(codes, key=lambda code: float((code - place).norm()))
        assert torch.allclose(found[n, :, i, j], nearest, atol=1e-6)
    # Codes stay where they are, and decode to what their latents do.
    assert torch.allclose(space.quantize(found), found, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(space.decode(found), space.decode(latents), atol=1e-5)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "VQModel"])
def test_gradients_pass_straight_through_quantizing(kind):
    space = Latents(tiny_autoencoder(kind))
    latents = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weight = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    found = space.quantize(latents)
    assert torch.allclose(torch.autograd.grad((found * weight).sum(), latents)[0], weight)
    assert torch.equal(found, latents) == (kind != "VQModel")
    assert Pixels(3).quantize(latents) is latents


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "VQModel"])
def test_decoding_is_differentiable_and_asks_for_no_gradient_of_weights(kind):
    net = tiny_autoencoder(kind)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    images = Latents(net).decode(latents)
    images.square().sum().backward()
    assert latents.grad.any() and all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_to_uint8_clamps():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.004, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
