"""Opened priors small enough for float64, known by a formula or random networks of diffusers; and the chain by hand."""

from collections.abc import Callable

import torch
from tiny_networks import tiny_autoencoder, tiny_dit, tiny_unet
from torch import Tensor, nn

from raydd.models.prior.autoencoder import Latents, Pixels
from raydd.models.prior.opened import OpenedPrior
from raydd.models.prior.schedule import read_table

# The schedule of the latent diffusion model that LD3M was published with, and its sampler.
LDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
LDM |= {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
ABAR = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, 0)


class Formula(nn.Module):
    """A denoiser that is `call` of (x, timesteps)."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    def forward(self, x, times, class_labels, return_dict):
        return (self.call(x, times),)


def formula_prior(call: Callable[[Tensor, Tensor], Tensor], size: int = 2, **config) -> OpenedPrior:
    """Unconditional, in pixel space, float64 3 x size x size, on the LDM's schedule unless `config` says otherwise."""
    return _opened(Formula(call), Pixels(3), size, **config)


def gaussian_prior(spread: float, size: int = 2) -> OpenedPrior:
    """The exact denoiser of data N(0, spread^2): x0 = j x with j = sqrt(abar) s^2 / (abar s^2 + 1 - abar)."""

    def call(x: Tensor, times: Tensor) -> Tensor:
        abar = ABAR[times].view(-1, 1, 1, 1)
        return abar.sqrt() * spread**2 / (abar * spread**2 + 1 - abar) * x

    return formula_prior(call, size, prediction_type="sample")


def unet_prior(null: bool = True, dtype: torch.dtype = torch.float64) -> OpenedPrior:
    """A random UNet of three classes, in pixel space at 8 px."""
    net = tiny_unet(num_class_embeds=3 + null)
    return _opened(_random(net, dtype), Pixels(3), 8, classes=3, null=3 if null else None)


def dit_prior(autoencoder: str = "AutoencoderKL", dtype: torch.dtype = torch.float64) -> OpenedPrior:
    """A random DiT of three classes with three tables, on latents 4 x 8 x 8 of an autoencoder of 16 px images."""
    space = Latents(_random(tiny_autoencoder(autoencoder, widths=(8, 8)), dtype))
    return _opened(_random(tiny_dit(layers=3), dtype), space, 8, classes=3, null=3)


def chain_by_hand(
    prior: OpenedPrior, z: Tensor, c: Tensor, eps: Tensor, *, steps: int, guidance: float, anchor: str, weights: str
) -> Tensor:
    """The chain of ld3m.md, section 3.1, for the class-conditional priors above: one call for each half of guidance."""
    a = [float(ABAR[min(k * (1000 // steps) + 1, 999)]) for k in reversed(range(steps))] + [float(ABAR[0])]
    null = torch.full((len(z),), prior.null)
    start = x = a[0] ** 0.5 * z + (1 - a[0]) ** 0.5 * eps
    for k in range(steps):
        times = torch.full((len(x),), (steps - 1 - k) * (1000 // steps) + 1)
        halves = [prior.net(x, times, class_labels=y, return_dict=False)[0] for y in (c, null)]
        given, free = (half[:, : x.shape[1]] for half in halves)
        e = free + guidance * (given - free)
        x0 = (x - (1 - a[k]) ** 0.5 * e) / a[k] ** 0.5
        left = steps - k
        w = left / steps if weights == "t_over_T" else (left - 1) / (steps - 1)
        if anchor == "x0":
            x0 = (1 - w) * x0 + w * z
        x = a[k + 1] ** 0.5 * x0 + (1 - a[k + 1]) ** 0.5 * e
        if anchor == "mean":
            x = (1 - w) * x + w * start
    return x


def kept_by(call: Callable[[], Tensor], net: nn.Module) -> int:
    """Bytes of all storages that autograd keeps for a call, a network's parameters apart."""
    seen, own = {}, {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    return sum(size for place, size in seen.items() if place not in own)


def draw(*shape: int, key: int = 0) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def _opened(net: nn.Module, space, size: int, classes: int | None = None, null: int | None = None, **config):
    table = read_table(LDM | config, pixels=isinstance(space, Pixels))
    labels = None if classes is None else range(classes)
    return OpenedPrior(net, space, table, latent_size=size, labels=labels, null=null, num_classes=classes)


def _random(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Frozen, with seeded weights that are nowhere zero, as some layers of diffusers start."""
    rng = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.data = spread * torch.randn(parameter.shape, generator=rng)
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.data += 1
    # As a plain module: diffusers' own `to` warns.
    return nn.Module.to(net, dtype).eval().requires_grad_(False)
