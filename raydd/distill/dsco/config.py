"""The switches of noise optimization (DsCo, arXiv 2603.27987; authors' code kkkkqq/Dataset-Concentration).

Tags: (released) as the authors' code does it, (ours) where we depart from it or it does not say. `released()` returns
the authors' setting in every switch. Doping's switches stand with `raydd dope`.
"""

import dataclasses
import math
from typing import Literal

from raydd.config import check_choices
from raydd.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DscoConfig:
    """One noise optimization: how is sampled, what is matched, and how the noise is optimized."""

    # What is matched: the source's images, or statistics of the prior's own samples, which needs no source (released).
    access: Literal["source", "free"] = "source"
    # Sampling steps (released: 50).
    steps: int = 50
    # Classifier-free guidance scale; 1 skips the null pass (released: 4).
    guidance: float = 4.0
    # Channels that guidance acts on; first3 is a quirk of DiT's code (released: first3).
    guidance_channels: Literal["all", "first3"] = "all"
    # Noise that a step injects, as a share of the ancestral sampler's (released: 1); 0 leaves nothing to optimize.
    eta: float = 1.0
    # Latents of the real images: a draw from the autoencoder's posterior (released), or its mean.
    latent: Literal["sample", "mean"] = "sample"
    # Noise level of the real images at a step: that of the samples after it (ours), or before it (released).
    target_level: Literal["after", "before"] = "after"
    # Noised copies of every real image at a step (released: 5).
    rounds: int = 5
    # Most noised copies at a step per image that is made, fewer rounds first, then images drawn anew at every step. The
    # targets' sampling error is about 0.25 / root of it, in deviations. None uses all images and rounds (released).
    rows_per_image: int | None = None
    # How copies of an image share out the noise: one shift for all (ours, faster), or jittered strata (released).
    strata: Literal["systematic", "jittered"] = "systematic"
    # Targets from the exact quantile function (ours), or from bins of images topped up to fit (released).
    bins: Literal["exact", "topup"] = "exact"
    # One random feature net for the run (ours), or one per class (released).
    extractor: Literal["shared", "per-class"] = "shared"
    # Feature nets over which the matching loss is averaged (released: 1).
    num_extractors: int = 1
    # Weight of matching per feature and image (released: 0.0005 at 2048 features).
    kappa: float = 1.024
    # Matching pulls in proportion to IPC (released), or as at IPC 10 for every IPC.
    k_scaling: Literal["linear", "fixed"] = "linear"
    # Keep the noise on its shell by rescaling it after every iteration (ours), or by a penalty (released).
    norm: Literal["project", "penalty"] = "project"
    # Weight of that penalty (released: 1).
    norm_weight: float = 1.0
    # Noise that sampling starts from: stratified over the images of a class (released), stratified with jitter,
    # independent, or real images noised to `real_level`. A single image starts from independent noise (ours).
    start: Literal["lattice", "stratified", "gaussian", "real"] = "lattice"
    # Scale the lattice to unit variance.
    start_unit_variance: bool = False
    # Where `real` starts, as a share of the steps (ours).
    real_level: float = 0.6
    # Most iterations of a step (released: 200). None takes 40, and 80 for latents below 16 px, whose features leave
    # more to do: they end at or below the loss of 200 released iterations (ours, measured).
    iterations: int | None = None
    # Stop a step when its loss has gained less than 1 % in 10 iterations, or never (released); not with `shell`.
    stop: Literal["plateau", "none"] = "none"
    # What updates the noise: scale-free momentum along its shell (ours; too strong without the source, where its steps
    # do not shrink with the pull), SGD with momentum (released), or Adam.
    optimizer: Literal["shell", "sgd", "adam"] = "shell"
    # Its step size; None takes 1.5 (shell), 0.1 (sgd; released) or 0.2 (adam).
    lr: float | None = None
    # Its momentum, Adam's first beta; None takes 0.8 (shell) or 0.9 (sgd, adam; released).
    momentum: float | None = None
    # Arithmetic of the feature net's convolutions (released: fp32); auto takes bf16 where the hardware has it.
    feature_precision: Literal["auto", "fp32", "bf16", "fp64"] = "fp32"
    # Most images that are optimized together; more are cut into near-equal chunks (ours; released: no limit).
    chunk: int = 256
    # Classes that share the batches of denoiser and feature net, for GPUs that one class leaves idle (released: 1). The
    # images are those of one class at a time, rounding apart.
    pack: int = 1
    # Source-free: what is matched, maps of the feature net or raw latents (NODD).
    features: Literal["maps", "latent"] = "maps"
    # Source-free: samples per class behind the statistics (released: 200).
    templates: int = 200
    # Source-free: weight of the statistics per feature (released: 0.001 at 2048 features and 16 positions).
    kappa_free: float = 32.8
    # Source-free: weight of the largest cosine between two images (released: 10).
    cosine_weight: float = 10.0

    def at(self, latent_shape: tuple[int, int, int]) -> "DscoConfig":
        """The same with the iterations settled for latents [Ch, H, W]."""
        if self.iterations is not None:
            return self
        return dataclasses.replace(self, iterations=80 if min(latent_shape[1:]) < 16 else 40)

    @property
    def settled_lr(self) -> float:
        """The step size, the optimizer's own where none is given."""
        return {"shell": 1.5, "sgd": 0.1, "adam": 0.2}[self.optimizer] if self.lr is None else self.lr

    @property
    def settled_momentum(self) -> float:
        """The momentum, the optimizer's own where none is given."""
        return {"shell": 0.8, "sgd": 0.9, "adam": 0.9}[self.optimizer] if self.momentum is None else self.momentum

    def check(self) -> None:
        """Raise `UserError` for an unknown switch or a value out of range."""
        check_choices(self)
        if self.eta == 0:
            raise UserError("--eta 0: sampling injects no noise, which leaves nothing to optimize; use 1")
        lows = {
            "steps": 2,
            "rounds": 1,
            "num_extractors": 1,
            "iterations": 0,
            "chunk": 1,
            "pack": 1,
            "templates": 2,
            "rows_per_image": 1,
        }
        for name, low in lows.items():
            value = getattr(self, name)
            _check_range(name, low if value is None else value, low)
        for name in ("guidance", "kappa", "norm_weight", "kappa_free", "cosine_weight"):
            _check_range(name, getattr(self, name), 0)
        _check_range("eta", self.eta, 0, 1)
        _check_range("momentum", self.settled_momentum, 0, 0.999)
        for name, value, high in (("lr", self.settled_lr, 1e6), ("real-level", self.real_level, 1)):
            if not 0 < value <= high:
                raise UserError(f"--{name} {value}: must be above 0 and at most {high:g}")
        if self.optimizer == "shell" and (self.norm, self.stop) != ("project", "none"):
            raise UserError("--optimizer shell goes with --norm project and --stop none: change them, or use sgd")
        if self.pack > 1 and (self.extractor, self.stop) != ("shared", "none"):
            raise UserError(f"--pack {self.pack} goes with --extractor shared and --stop none: change them, or use 1")
        if self.access == "free" and self.start == "real":
            raise UserError("--start real needs images: use --access source, or another start")


def _check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise UserError(f"--{name.replace('_', '-')} {value}: must be {limits}")


def fast() -> DscoConfig:
    """The defaults with 15 iterations, 100 noised copies of real images per image, and bf16 where it is fast (ours)."""
    return DscoConfig(iterations=15, feature_precision="auto", rows_per_image=100)


def sgd() -> DscoConfig:
    """The defaults, optimized as released: SGD with the norm's penalty, 200 iterations."""
    return DscoConfig(optimizer="sgd", iterations=200, norm="penalty")


def free() -> DscoConfig:
    """Without the source, optimized as released: steps of a fixed length would take images off their class."""
    return dataclasses.replace(sgd(), access="free")


def released() -> DscoConfig:
    """Every switch as in the authors' code."""
    return dataclasses.replace(
        sgd(),
        guidance_channels="first3",
        target_level="before",
        strata="jittered",
        bins="topup",
        extractor="per-class",
        chunk=1_000_000,
    )


PRESETS = {"dsco": DscoConfig, "dsco-fast": fast, "dsco-sgd": sgd, "dsco-free": free, "dsco-released": released}
