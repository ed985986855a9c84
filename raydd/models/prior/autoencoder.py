"""Between images and what a prior works on: nothing (pixel space), or an autoencoder of diffusers.

Latents are (z - shift) * scale with both from the autoencoder's config, as in diffusers' own pipelines. VQModel's are
those before quantization; decoding quantizes them. Autoencoders run in fp32 (ours): the variational ones are known to
overflow in half precision.
"""

from typing import Protocol

from torch import Tensor, nn

from raydd.errors import UserError

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


class Space(Protocol):
    """Where a prior works: `channels` of its latents, and `factor` pixels per latent position."""

    channels: int
    factor: int

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation (None: none) fp32 [n,Ch,H,W] of the latents of images uint8 [n,1|3,S,S]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images fp32 [n,3,S,S] of latents, in [-1, 1] but not clamped; differentiable."""
        ...

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents moved to the nearest codes, gradients passing straight through; unchanged without a code book."""
        ...


class Pixels:
    """The image itself in [-1, 1]: three channels, or one (gray, the mean of three), which decodes to three."""

    factor = 1

    def __init__(self, channels: int):
        if channels not in (1, 3):
            raise UserError(f"the prior has {channels} channels and no autoencoder: pixel-space priors have 1 or 3")
        self.channels = channels

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = images.float() / 127.5 - 1
        return (pixels if pixels.shape[1] == self.channels else pixels.mean(1, keepdim=True)), None

    def decode(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, -1, -1)

    def quantize(self, latents: Tensor) -> Tensor:
        return latents


class Latents:
    """The latents of a frozen AutoencoderKL, AutoencoderTiny or VQModel of diffusers; `hash` is of its files."""

    def __init__(self, net: nn.Module, hash: str = ""):
        self.net, self.hash, config = net.eval().requires_grad_(False), hash, net.config
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        if type(net).__name__ == "AutoencoderTiny":
            widths = config["encoder_block_out_channels"]
        self.channels, self.factor = int(config["latent_channels"]), 2 ** (len(widths) - 1)
        self.scale, self.shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
        encoded = self.net.encode(pixels)
        if hasattr(encoded, "latent_dist"):
            known = encoded.latent_dist
            return (known.mean - self.shift) * self.scale, known.std * self.scale
        return (encoded.latents - self.shift) * self.scale, None

    def decode(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents / self.scale + self.shift).sample

    def quantize(self, latents: Tensor) -> Tensor:
        if not hasattr(self.net, "quantize"):
            return latents
        return (self.net.quantize(latents / self.scale + self.shift)[0] - self.shift) * self.scale


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, clamped and rounded to the nearest."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()
