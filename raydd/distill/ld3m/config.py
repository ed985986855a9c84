"""The switches of LD3M (arXiv 2403.03881): what is learned through the prior, how it is matched, how it is optimized.

Tags: (paper) as published, (released) as the authors' code does it, (ours) where we depart or they do not say.
`released()` returns the authors' setting in every switch that we follow.
"""

import dataclasses
from typing import Literal

from raydd.config import check_choices
from raydd.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ld3mConfig:
    """One latent optimization: the generator, the matching loss, the optimizer."""

    # Images come out of the prior, or are learned pixel by pixel, which needs no prior (a control).
    generator: Literal["prior", "pixels"] = "prior"
    # Whether learned pixels are held in [0, 1]; off, they are cut off only where they are written (the literature's
    # pixel sets never are). What comes out of a prior always is.
    clamp: bool = True
    # Sampling steps (released: 10; paper: 20 at 256 px); 0 is the autoencoder alone.
    steps: int = 10
    # Classifier-free guidance scale; 1 skips the null pass. None takes 3 (released), or 1 without a null label.
    guidance: float | None = None
    # What is mixed into every step: the start into the predicted image (released), into the state (paper), or nothing.
    anchor: Literal["x0", "mean", "none"] = "x0"
    # How the mixture fades: from 1 to 0, or from 1 to 1/steps. None takes the anchor's own (x0: to_zero, released).
    weights: Literal["to_zero", "t_over_T"] | None = None
    # What is learned: latents and conditions, or one of the two.
    learn: Literal["both", "latent", "condition"] = "both"
    # Where latents start: `real` images, `gaussian` noise of the same size, or the images of a run, by its directory.
    init: str = "real"
    # Noise under the latents: new in every iteration, one draw for the run (what is optimized is what is exported), or
    # new in each pass of two graphs (released, for comparison only).
    noise: Literal["iteration", "fixed", "pass"] = "iteration"
    # Matching loss: features (DM), gradients (DC), or trajectories of parameters (MTT).
    loss: Literal["dm", "dc", "mtt"] = "dm"
    # Network that matches; None takes the literature's ConvNet for the size, or the experts'.
    matcher: str | None = None
    # Real images per class and iteration (released: 256).
    real_batch: int = 256
    # Draws of (network, real batch, augmentation) to cycle through, whose real features are kept, which saves most of
    # DM's own time (ours); None draws anew in every iteration (released). MTT draws experts instead.
    pool: int | None = None
    # Distance between gradients: one cosine per output row (paper), squares, or one cosine.
    distance: Literal["layers", "mse", "cos"] = "layers"
    # Expert trajectories, a directory of 'raydd train-experts'; MTT only.
    experts: str | None = None
    # How MTT is differentiated: exactly in constant memory (ours), as TESLA (released), or by the whole graph.
    mtt_gradient: Literal["adjoint", "tesla", "unrolled"] = "adjoint"
    # Student steps and expert epochs of a match, and the number of epochs it may start from (released: 10, 2, 2).
    student_steps: int = 10
    expert_epochs: int = 2
    max_start: int = 2
    # Synthetic images per student step; None takes all.
    student_batch: int | None = None
    # The student's learning rate at the start, and the rate at which it is learned itself (released: 0.01, 1e-6).
    student_lr: float = 0.01
    student_lr_lr: float = 1e-6
    # Iterations (released: 10000, elsewhere 1000; the published tables do not say).
    iterations: int = 1000
    # What updates latents and conditions: SGD with momentum (released), or Adam (ours).
    optimizer: Literal["sgd", "adam"] = "sgd"
    # Its momentum (released: 0.5).
    momentum: float = 0.5
    # Rates of latents and conditions; None sets them so that a step moves each by `move` of its size (ours).
    lr_latent: float | None = None
    lr_cond: float | None = None
    move: float = 0.01
    # Sets of (network, real batch, augmentation) never trained on, whose loss is reported; 0 reports none.
    heldout: int = 8
    # One graph, or the images again in a second pass (released), which keeps less.
    graph: Literal["one", "two"] = "one"
    # Images that go through the prior together (released: 10), and through its decoder; None decodes as many.
    chunk: int = 10
    decode_chunk: int | None = None
    # Steps whose activations are kept rather than computed again; None keeps what a quarter of the memory holds.
    keep_steps: int | None = None

    @property
    def settled_weights(self) -> str:
        """How the mixture fades, the anchor's own way where none is given."""
        return self.weights or ("t_over_T" if self.anchor == "mean" else "to_zero")

    @property
    def learns(self) -> tuple[bool, bool]:
        """Whether latents and conditions are learned."""
        return self.learn != "condition", self.learn != "latent" and self.generator == "prior" and self.steps > 0

    def check(self) -> None:
        """Raise `UserError` for an unknown switch or a value out of range."""
        check_choices(self)
        lows = {
            "steps": 0,
            "real_batch": 1,
            "student_steps": 1,
            "expert_epochs": 1,
            "max_start": 1,
            "iterations": 0,
            "heldout": 0,
            "chunk": 1,
        }
        for name, low in lows.items():
            _check_low(name, getattr(self, name), low)
        for name in ("student_batch", "decode_chunk", "pool"):
            _check_low(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        for name in ("guidance", "lr_latent", "lr_cond", "keep_steps", "student_lr_lr"):
            _check_low(name, getattr(self, name) or 0, 0)
        for name in ("move", "student_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name):g}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum:g}: must be from 0 to below 1")
        if self.noise == "pass" and self.graph != "two":
            raise UserError("--noise pass draws anew in a second pass: add --graph two, or use --noise iteration")
        if not self.clamp and self.generator != "pixels":
            raise UserError("--no-clamp serves --generator pixels: leave one out")
        if not any(self.learns):
            raise UserError("--learn condition: without a sampling chain there is no condition; use --learn latent")
        if self.loss == "mtt" and self.experts is None:
            raise UserError("--loss mtt needs --experts DIR: train them with 'raydd train-experts'")
        if self.loss != "mtt" and self.experts is not None:
            raise UserError(f"--experts serve --loss mtt, not {self.loss}: leave one out")


def _check_low(name: str, value: float, low: float) -> None:
    if not value >= low:  # NaN is refused too
        raise UserError(f"--{name.replace('_', '-')} {value:g}: must be at least {low:g}")


def demo() -> Ld3mConfig:
    """DM in 60 large steps through a short chain, for small pixel-space priors on a CPU (ours)."""
    return Ld3mConfig(steps=5, iterations=60, move=0.03, real_batch=128, pool=20, heldout=4)


def autoencoder() -> Ld3mConfig:
    """The autoencoder alone, without the diffusion chain (the paper's ablation)."""
    return Ld3mConfig(steps=0, learn="latent")


def pixels() -> Ld3mConfig:
    """Pixels learned directly: DM, DC or MTT as they were before priors."""
    return Ld3mConfig(generator="pixels", steps=0, learn="latent")


def released() -> Ld3mConfig:
    """The authors' numbers for DM. For DC they use rates of 0.1; for MTT 1000, which is 500 here (our gradient is
    twice theirs, as their factor 2 was lost)."""
    return Ld3mConfig(
        guidance=3.0, iterations=10_000, lr_latent=1.0, lr_cond=1.0, noise="pass", graph="two", mtt_gradient="tesla"
    )


PRESETS = {
    "ld3m": Ld3mConfig,
    "ld3m-demo": demo,
    "ld3m-autoencoder": autoencoder,
    "ld3m-pixels": pixels,
    "ld3m-released": released,
}
