"""A prior on one device: a denoiser, the space it works in and the levels it knows, behind one small interface.

Guidance is n = n_null + g * (n_c - n_null) (arXiv 2207.12598). It is applied to the network's raw output, which is the
same, since at a given x every parameterization is affine in n; clipping comes after it. `first3` guides only the first
three channels, a quirk of facebookresearch/DiT that DsCo's released setting inherits (dsco.md, section 3.1).
"""

import functools
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from raydd.errors import UserError, choose
from raydd.models.prior.autoencoder import Space, to_uint8
from raydd.models.prior.base import Prediction, Schedule
from raydd.models.prior.conditions import open_conditions
from raydd.models.prior.schedule import NoiseTable

GUIDED = ("all", "first3")
PRECISIONS = ("auto", "bf16", "fp32")


class OpenedPrior:
    """Implements `base.Prior` over a diffusers network.

    labels: what the denoiser is told for label 0, 1 ... of the caller, None for an unconditional one. null: its null
    label, or None. The network's weights are used as they are; `uses_bf16` says whether they should be bfloat16.
    """

    def __init__(
        self,
        net: nn.Module,
        space: Space,
        table: NoiseTable,
        *,
        latent_size: int,
        labels: Sequence[int] | None,
        null: int | None,
        num_classes: int | None,
        classes: tuple[str, ...] | None = None,
        guidance_channels: str = "all",
        spacing: str = "linspace",
        hash: str = "",
        device: str = "cpu",
    ):
        self.net, self.space, self.table, self.spacing = net, space, table, spacing
        self.latent_shape = (space.channels, latent_size, latent_size)
        self.image_size = latent_size * space.factor
        self.classes, self.num_classes, self.null = classes, num_classes, null
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64, device=device)
        self.guidance_channels = choose("guidance_channels", guidance_channels, GUIDED)
        self.hash, self.device = hash, device

    @property
    def guidable(self) -> bool:
        return self.null is not None and self.labels is not None

    def schedule(self, steps: int, spacing: str | None = None) -> Schedule:
        """The levels of a run of `steps` steps; `UserError` for more than the denoiser was trained at."""
        return self.table.schedule(steps, spacing or self.spacing)

    @functools.cached_property
    def _conditions(self) -> Tensor | None:
        return None if self.labels is None else open_conditions(self.net)

    def conditions(self, labels: Tensor) -> Tensor | None:
        """See `base.Differentiable`. Raises `UserError` where the network's embedders are not where expected."""
        table = self._conditions
        return None if table is None else table[self.labels[labels.to(self.device)]].clone()

    def denoise(
        self,
        x: Tensor,
        schedule: Schedule,
        i: int,
        labels: Tensor | None,
        guidance: float = 1.0,
        *,
        clip: bool = True,
    ) -> Prediction:
        """See `base.Prior`; labels may be float conditions (`base.Differentiable`), `clip=False` leaves out clipping.

        Raises `UserError` for guidance of a prior that has no null label.
        """
        x = x if x.dtype == torch.float64 else x.float()
        own = self._own(labels, len(x))
        time = schedule.timesteps[i]
        if guidance == 1:
            output = self._run(x, time, own)
        else:
            if not self.guidable:
                kind = "unconditional" if self.labels is None else "without a null label"
                raise UserError(f"guidance {guidance:g} of a prior that is {kind}: use --guidance 1")
            both = torch.cat([own, self._free(own)])
            output, free = self._run(torch.cat([x, x]), time, both).chunk(2)
            guided = 3 if self.guidance_channels == "first3" else self.latent_shape[0]
            mixed = free[:, :guided] + guidance * (output[:, :guided] - free[:, :guided])
            output = torch.cat([mixed, output[:, guided:]], 1)
        channels = self.latent_shape[0]
        variance = output[:, channels:] if output.shape[1] == 2 * channels else None
        return Prediction(*self.table.split(output[:, :channels], x, *schedule.level(i), clip=clip), variance)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `base.Prior`. Raises `UserError` for images of another size."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = " x ".join(map(str, images.shape[-2:]))
            raise UserError(f"images of {size} px for a prior of {self.image_size} px: decode the source at that size")
        mean, std = self.space.moments(images.to(self.device))
        return mean if noise is None or std is None else mean + std * noise.to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return to_uint8(self.space.decode(latents.float().to(self.device)))

    def paint(self, latents: Tensor) -> Tensor:
        """See `base.Differentiable`."""
        return self.space.decode(latents)

    def anchor(self, latents: Tensor) -> Tensor:
        """See `base.Differentiable`."""
        return self.space.quantize(latents)

    def draw(self, count: int, generator: Generator) -> Tensor:
        return torch.randn(count, *self.latent_shape, generator=generator).to(self.device)

    def _own(self, labels: Tensor | None, count: int) -> Tensor | None:
        if self.labels is None:
            return None
        if labels is None or len(labels) != count:
            raise ValueError(f"a class-conditional prior needs one label for each of {count} images")
        if not labels.is_floating_point():
            return self.labels[labels.to(self.device)]
        # Conditions may come from a file, before anyone asked for those of a label: now the embedders must be open.
        _ = self._conditions
        return labels

    def _free(self, own: Tensor) -> Tensor:
        """The null label, or its condition, for every row."""
        if not own.is_floating_point():
            return torch.full_like(own, self.null)
        return self._conditions[self.null].to(own.dtype).expand_as(own)

    def _run(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        times = time.to(self.device).expand(len(x))
        if labels is not None and labels.is_floating_point():
            labels = labels.to(dtype)
        return self.net(x.to(dtype), times, class_labels=labels, return_dict=False)[0].to(x.dtype)


def uses_bf16(precision: str, device: str) -> bool:
    """Whether a denoiser runs in bfloat16: as told, or by itself on CUDA that has it."""
    if choose("precision", precision, PRECISIONS) != "auto":
        return precision == "bf16"
    return device.startswith("cuda") and torch.cuda.is_bf16_supported()
