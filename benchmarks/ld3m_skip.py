"""How much gradient reaches the latent through T steps, with the skip on the image, on the state, and without.

- Gaussian: data N(0, s^2) under the noise schedule of latent diffusion, whose denoiser is known: exact gains
  d(clean) / dZ of the chain in float64, by autograd through `PriorGenerator.chain`.
- A prior: norm of d(DM loss) / dZ per image at the start of a run, on real images of a source, with the networks and
  augmentations of the same iterations for all T and anchors; and that of the conditions.
"""

import dataclasses

import pyarrow.compute as pc
import torch
from torch import Tensor

from raydd.data.source import Source, open_source
from raydd.data.tensors import load_images
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PriorGenerator
from raydd.distill.ld3m.loop import Descent
from raydd.distill.ld3m.objective import ClassMatching, Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.models.prior.base import Prediction, Schedule
from raydd.models.prior.opened import OpenedPrior
from raydd.models.prior.pipeline import load_prior
from raydd.models.prior.schedule import read_table

STEPS = (5, 10, 20, 40)
ANCHORS = ("x0", "mean", "none")
REALS = 256
LATENT_DIFFUSION = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """What the chain needs of a prior of data N(0, s^2): its best guess is a multiple of what it sees."""

    s: float
    guidable: bool = False
    latent_shape: tuple[int, int, int] = (1, 1, 1)
    image_size: int = 1
    device: str = "cpu"

    def schedule(self, steps: int, spacing: str | None = None) -> Schedule:
        return read_table(LATENT_DIFFUSION, pixels=False).schedule(steps, spacing or "leading")

    def denoise(
        self, x: Tensor, schedule: Schedule, i: int, labels: None, guidance: float = 1.0, *, clip: bool = True
    ) -> Prediction:
        alpha, sigma = schedule.level(i)
        clean = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * x
        return Prediction(clean, (x - alpha * clean) / sigma)

    def anchor(self, latents: Tensor) -> Tensor:
        return latents


def gain(s: float, anchor: str, steps: int) -> float:
    """d(clean) / dZ."""
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    chain = PriorGenerator(Gaussian(s), Ld3mConfig(steps=steps, anchor=anchor), 1).chain
    return float(torch.autograd.grad(chain(z, None, torch.zeros_like(z)).sum(), z)[0])


def measure_gaussian() -> list[dict[str, object]]:
    """Print and return the gains."""
    rows = [
        {"s": s, "anchor": anchor} | {f"T{steps}": gain(s, anchor, steps) for steps in STEPS}
        for s in (1.0, 0.1)
        for anchor in ANCHORS
    ]
    print("\ngain of the latent, Gaussian prior\n" + _head("s"))
    for row in rows:
        print(f"{row['s']:<8}{row['anchor']:<8}" + "".join(f"{row[f'T{steps}']:>10.4f}" for steps in STEPS))
    return rows


def measure_prior(name: str, data: str, classes: int, iterations: int, device: str) -> list[dict[str, object]]:
    """Print and return norms through the prior at `name`: means over the images, `iterations` and `classes` classes."""
    source = open_source(data)
    prior = load_prior(name, device=device, classes=source.classes)
    pack = Pack(source.classes[:classes], tuple(range(classes)), len(source.classes), 1, 0)
    reals = [_reals(source, prior.image_size, label) for label in pack.labels]
    pixels = torch.cat(reals).float() / 255
    mean, std = (tuple(value.clamp(min=1e-3).tolist()) for value in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    z = prior.encode(torch.stack([images[0] for images in reals]))
    c = prior.conditions(pack.each(pack.labels))
    print(f"\nnorm of the DM loss's gradient per image, prior of {prior.image_size} px, {classes} images\n" + _head(""))
    rows: list[dict[str, object]] = []
    for anchor in ANCHORS:
        norms = [_norms(prior, pack, reals, Normalize(mean, std), z, c, anchor, T, iterations) for T in STEPS]
        for what, values in zip(("Z", "c"), zip(*norms)):
            rows.append({"of": what, "anchor": anchor} | {f"T{steps}": v for steps, v in zip(STEPS, values)})
            print(f"{what:<8}{anchor:<8}" + "".join(f"{value:>10.3g}" for value in values), flush=True)
    return rows


def _norms(
    prior: OpenedPrior,
    pack: Pack,
    reals: list[Tensor],
    normalize: Normalize,
    z: Tensor,
    c: Tensor | None,
    anchor: str,
    steps: int,
    iterations: int,
) -> tuple[float, ...]:
    config = Ld3mConfig(steps=steps, anchor=anchor, real_batch=REALS, heldout=0)
    objective = ClassMatching(pack, reals, "convnet3", config, normalize, prior.device)
    descent = Descent(PriorGenerator(prior, config, prior.image_size), objective, normalize, pack, config)
    total: list[float] = [0.0, 0.0]
    for iteration in range(iterations):
        _, gradients = descent.gradients(z, c, iteration)
        total = [t + (0.0 if g is None else float(g.flatten(1).norm(dim=1).mean())) for t, g in zip(total, gradients)]
    return tuple(value / iterations for value in total)


def _reals(source: Source, size: int, label: int) -> Tensor:
    index = source.index()
    keys = index["key"].filter(pc.equal(index["label"], label)).to_pylist()
    return load_images(source, size, keys=keys[:REALS]).images


def _head(first: str) -> str:
    return f"{first:<8}{'anchor':<8}" + "".join(f"{f'T = {steps}':>10}" for steps in STEPS)
