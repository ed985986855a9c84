"""A protocol as a value: every field that changes a student's numbers, and a hash over all of them.

The named recipes live in `raydd.evaluate.protocols`; the loop that obeys them in `raydd.train.student`. Two results may
be compared only when their protocols have the same hash (evaluation.md, section 10).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from raydd.config import content_hash
from raydd.train.schedule import Schedule


@dataclass(frozen=True)
class Augmentation:
    """What turns a stored image into a training view, in this order; the default changes nothing.

    `autoaugment` on the stored image; `tiles` F: shuffle F x F tiles (1: none); `crop_area`: random resized crop with
    this range of area, then `flip` with probability .5; `jitter` (brightness, contrast, saturation) and `lighting`
    (deviation of PCA noise) on [0, 1] values; `dsa` `one` or `all` on normalized values; CutMix on a batch with
    probability `cutmix` and lambda ~ Beta(`cutmix_alpha`, same).
    """

    autoaugment: bool = False
    tiles: int = 1
    crop_area: tuple[float, float] | None = None
    flip: bool = False
    jitter: tuple[float, float, float] | None = None
    lighting: float = 0.0
    dsa: Literal["one", "all"] | None = None
    cutmix: float = 0.0
    cutmix_alpha: float = 1.0


@dataclass(frozen=True)
class Protocol:
    """A complete recipe for training and testing a student, resolved for one set.

    `batch` images per optimizer step, in `accumulate` forwards. `arch_lr`: (prefix of the architecture's name, rate)
    pairs, the first match wins over `lr`. `loss` is `ce` or `kl`; `temperature` divides teacher and student logits
    (`kl`), and no T^2 is applied. `labels`: whether the recipe is made for hard or soft targets. `ema` 0 tests the
    weights themselves, otherwise their exponential average per step. `norm`: normalization layers of the student.
    `test_resize`: shorter side in pixels before the center crop of validation images. `checks`: fractions of the run at
    which the student is tested; the last is 1. `double_bn_update`: an extra training-mode forward per step (RDED).
    """

    name: str
    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    schedule: Schedule
    epochs: int
    batch: int
    augmentation: Augmentation
    loss: Literal["ce", "kl"]
    labels: Literal["hard", "soft"]
    image_size: int
    test_resize: int
    arch_lr: tuple[tuple[str, float], ...] = ()
    momentum: float = 0.9
    wd_on_matrices_only: bool = False
    accumulate: int = 1
    temperature: float = 1.0
    ema: float = 0.0
    norm: Literal["batch", "instance"] | None = "batch"
    precision: Literal["fp32", "bf16"] = "fp32"
    checks: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    double_bn_update: bool = False
    hash: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.checks or self.checks[-1] != 1:
            raise ValueError(f"epochs {self.epochs}, batch {self.batch}, checks {self.checks}: last check must be 1")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "hash"}
        object.__setattr__(self, "hash", content_hash(values))

    def lr_for(self, arch: str) -> float:
        """Base learning rate of a student architecture (`torchvision/vgg11` is matched as `vgg11`)."""
        name = arch.rsplit("/", 1)[-1]
        return next((lr for prefix, lr in self.arch_lr if name.startswith(prefix)), self.lr)

    def steps(self, n_images: int) -> int:
        """Optimizer steps for a set of `n_images`: epochs * ceil(n / batch)."""
        return self.epochs * math.ceil(n_images / self.batch)

    def check_steps(self, steps: int) -> tuple[int, ...]:
        """Steps (1 to `steps`, increasing, the last included) after which a run of `steps` is tested."""
        return tuple(sorted({max(1, math.ceil(c * steps - 1e-9)) for c in self.checks}))
