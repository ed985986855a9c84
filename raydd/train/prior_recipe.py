"""What a prior is trained as: network, noise schedule, optimization. Presets from the digits to DiT-B.

All presets predict v (arXiv 2202.00512) under min-SNR-5 weights (arXiv 2303.09556). v stays well-posed at the noisy
end, where epsilon says nothing of the image; the weights converge several times faster than plain epsilon by that
paper's own figures. Given up is comparability of the loss with DiT's.

Pixel-space presets take the cosine schedule (arXiv 2102.09672), which spends its levels where small images change.
dit-s and dit-b are DiT-S/2 and DiT-B/2 (arXiv 2212.09748) with its linear schedule, over a given autoencoder. Shapes of
tiny, small and cifar, and all budgets, are ours.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from raydd.errors import UserError, choose
from raydd.models.prior.networks import DiTShape, Shape, UNetShape

LEVELS = 1000
COSINE, LINEAR = "squaredcos_cap_v2", "linear"


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """A complete recipe. `steps` of `batch` images, AdamW at peak rate `lr`, climbing over 5 % and then a cosine."""

    preset: str
    image_size: int
    shape: Shape
    steps: int
    batch: int
    lr: float
    betas: str = COSINE
    latent: bool = False  # whether the preset is meant for an autoencoder's latents
    prediction: str = "v_prediction"  # or epsilon
    weight_decay: float = 0.0
    clip: float = 1.0  # norm to which gradients are cut
    ema: float = 0.999
    label_dropout: float = 0.1
    snr_cap: float | None = 5.0  # None: every level weighs the same
    flip: bool = False
    seed: int = 0
    precision: str = "auto"
    sample_guidance: float = 2.0  # of the sample grids

    def scheduler(self) -> dict[str, Any]:
        """Config of the diffusers DDPMScheduler that is written beside the network."""
        return {
            "num_train_timesteps": LEVELS,
            "beta_schedule": self.betas,
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "prediction_type": self.prediction,
            "clip_sample": not self.latent,
            "variance_type": "fixed_small",
        }

    def check(self) -> None:
        for name in ("steps", "batch", "image_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name.replace('image_', '')} {value}: must be at least 1")
        if not self.lr > 0:
            raise UserError(f"--lr {self.lr:g}: must be positive; try --lr 1e-3")


def preset(name: str, **changes: Any) -> PriorRecipe:
    """A recipe by name; `changes` that are None keep the preset's value. Raises `UserError` for an unknown name."""
    recipe = PRESETS[choose("preset", name, PRESETS)]
    recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    recipe.check()
    return recipe


def _recipes(*recipes: PriorRecipe) -> dict[str, PriorRecipe]:
    return {recipe.preset: recipe for recipe in recipes}


PRESETS = _recipes(
    # The digits: 77 CPU seconds of one core, sample grids included.
    PriorRecipe(preset="tiny", image_size=16, shape=UNetShape((32, 64)), steps=400, batch=32, lr=2e-3, ema=0.99),
    # MNIST-like sets on a CPU: two thirds of its steps took ten minutes of one core.
    PriorRecipe(
        preset="small",
        image_size=28,
        shape=UNetShape((24, 48, 96)),
        steps=2400,
        batch=32,
        lr=1.5e-3,
        ema=0.995,
    ),
    # CIFAR-like sets on a GPU: 26 M parameters, attention at 16 px as in DDPM.
    PriorRecipe(
        preset="cifar",
        image_size=32,
        shape=UNetShape((128, 256, 256), attention=(1,), layers=2),
        steps=60_000,
        batch=256,
        lr=3e-4,
        ema=0.9995,
        flip=True,
    ),
    PriorRecipe(
        preset="dit-s",
        image_size=256,
        shape=DiTShape(depth=12, heads=6),
        steps=200_000,
        batch=256,
        lr=1e-4,
        ema=0.9999,
        betas=LINEAR,
        latent=True,
        flip=True,
        sample_guidance=4.0,
    ),
    PriorRecipe(
        preset="dit-b",
        image_size=256,
        shape=DiTShape(depth=12, heads=12),
        steps=200_000,
        batch=256,
        lr=1e-4,
        ema=0.9999,
        betas=LINEAR,
        latent=True,
        flip=True,
        sample_guidance=4.0,
    ),
)
