"""What every diffusion prior offers, whatever network and schedule are behind it.

A prior is an autoencoder (or none), a denoiser and a noise schedule, class-conditional or not. Methods see levels only:
x_i = alpha_i * x_clean + sigma_i * noise, for variance-preserving schedules and rectified flow alike (Kingma and Gao,
arXiv 2303.00848, for the view that all parameterizations predict the same two numbers).
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor


@dataclass(frozen=True)
class Schedule:
    """The levels of one sampling run, cleanest first: level i enters step i, and level -1 is the clean image.

    timesteps: [T], what the network is told at each level. alphas, sigmas: float64 [T]. start: standard deviation of
    the noise that sampling starts from (1 for variance-preserving schedules and rectified flow). final: the level that
    diffusers' DDIM ends at, for those who follow it to the last bit; (1, 0) or that of timestep 0.
    """

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor
    start: float = 1.0
    final: tuple[float, float] = (1.0, 0.0)

    def __len__(self) -> int:
        return len(self.alphas)

    def level(self, i: int) -> tuple[float, float]:
        """(alpha, sigma) of level i; (1, 0) for the clean level -1."""
        return (1.0, 0.0) if i < 0 else (float(self.alphas[i]), float(self.sigmas[i]))


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_i: `clean` and `noise` fp32 [n,Ch,H,W] with x_i = alpha * clean + sigma * noise.

    `variance` is the raw learned-range output of the conditional pass (Nichol and Dhariwal, arXiv 2102.09672, eq. 15),
    same shape, or None where the network has none.
    """

    clean: Tensor
    noise: Tensor
    variance: Tensor | None = None


class Prior(Protocol):
    """An opened prior on one device; weights are frozen, gradients pass to inputs where the caller enables them."""

    latent_shape: tuple[int, int, int]
    image_size: int
    # Class names in the order of the labels that `denoise` is given (the source's, if opened with classes), None where
    # unknown; the number of labels that the denoiser was trained with (None: unconditional).
    classes: tuple[str, ...] | None
    num_classes: int | None
    # Whether there is a null label for guidance.
    guidable: bool
    # Content hash of everything that decides what it draws.
    hash: str
    device: str

    def schedule(self, steps: int) -> Schedule:
        """The levels of a run of `steps` steps."""
        ...

    def denoise(
        self, x: Tensor, schedule: Schedule, i: int, labels: Tensor | None, guidance: float = 1.0
    ) -> Prediction:
        """Predict from x fp32 [n,Ch,H,W] at level i for labels int64 [n]; guidance 1 skips the null pass.

        Raises `UserError` for another guidance where the prior is not `guidable`.
        """
        ...

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents fp32 of images uint8 [n,3,S,S]; `noise` [n,Ch,H,W] draws from the posterior, None takes its mean."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images uint8 [n,3,S,S] of latents."""
        ...

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Standard normal latents [count,Ch,H,W], drawn on the CPU and moved, so that devices agree."""
        ...


class Differentiable(Prior, Protocol):
    """A prior through which gradients reach latents and conditions; nothing here is rounded, clipped or detached."""

    def schedule(self, steps: int, spacing: str | None = None) -> Schedule:
        """As `Prior.schedule`, at the timesteps of `spacing` (linspace, leading, trailing)."""
        ...

    def conditions(self, labels: Tensor) -> Tensor | None:
        """What the denoiser's label embedders make of labels int64 [n]: fp32 [n, ...] on the prior's device, a copy.

        Given to `denoise` in place of labels it gives the same bits. None for an unconditional prior.
        """
        ...

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
        """As `Prior.denoise`, also for float conditions [n, ...]; `clip=False` leaves the clean image as predicted."""
        ...

    def paint(self, latents: Tensor) -> Tensor:
        """Images fp32 [n,3,S,S] of latents, in [-1, 1] but not clamped."""
        ...

    def anchor(self, latents: Tensor) -> Tensor:
        """Latents at the autoencoder's nearest codes, with straight-through gradients; themselves where it has none."""
        ...
