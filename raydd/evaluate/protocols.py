"""The named recipes of evaluation.md section 2, resolved for one set: epochs and batch by its size.

`resolve("soft", ...)` returns a `Protocol` whose every field is fixed. A prefix `noaug:` gives any recipe without
augmentation and mixing, a suffix `@100` one of 100 epochs; both have hashes of their own. `quick` and `quick_soft` have
a tenth of the epochs and serve development only.

Decisions (ours): RDED's batch, defined for IPC 1, 10 and 50 only, is 10 up to IPC 1, 50 up to 10, 100 above; epochs
follow the IPC of the *final* set, rounded up (`dsco_soft`: of the synthetic part); two thirds of the epochs from 100
classes, rounded down to hundreds; `hard` tests five times, not a hundred.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from raydd.errors import UserError, choose
from raydd.train.protocol import Augmentation, Protocol
from raydd.train.schedule import Schedule

NOAUG = "noaug:"
RDED_RATES = (
    ("mobilenet_v2", 2.5e-3),
    ("efficientnet_b0", 2e-3),
    ("vgg", 5e-4),
    ("swin", 1e-4),
    ("vit", 1e-4),
    ("alexnet", 1e-4),
)
SOFT_CROP = (0.08, 1.0)
HALF_CROP = (0.5, 1.0)


@dataclass(frozen=True)
class Setting:
    """What a recipe may depend on: the set's size, its images, and (for two recipes) the student's name.

    `ipc` is that of the distillation; `final_ipc` counts all images of the set, doped ones included.
    """

    num_classes: int
    ipc: int
    n_images: int
    image_size: int
    factor: int
    arch: str

    @property
    def final_ipc(self) -> int:
        return max(1, math.ceil(self.n_images / self.num_classes))

    @property
    def large_resize(self) -> int:
        """Shorter side before the test crop: 256 for 224, 144 for 128, 72 for 64, 32 for 32 px."""
        return max(self.image_size, self.image_size // 7 * 8)


def resolve(
    name: str,
    *,
    num_classes: int,
    ipc: int,
    n_images: int | None = None,
    image_size: int,
    factor: int = 1,
    arch: str = "",
    precision: str = "fp32",
) -> Protocol:
    """The protocol `name` for a set: one of `PROTOCOLS`, with `noaug:` before it or `@EPOCHS` behind it if wanted.

    `n_images` is the final number of images (default `ipc` per class), `factor` the F of F x F mosaics. `arch` matters
    for `rded` and its kin on CIFAR-100 with ConvNet-3, and for `rd3`. Raises `UserError` for an unknown name.
    """
    plain = name.startswith(NOAUG)
    base, _, epochs = name.removeprefix(NOAUG).partition("@")
    recipe = RECIPES[choose("protocol", base, PROTOCOLS)]
    if "@" in name and not (epochs.isdecimal() and int(epochs) > 0):
        raise UserError(f"protocol {name!r}: after @ stands a number of epochs, e.g. {base}@100")
    n_images = num_classes * ipc if n_images is None else n_images
    arch = arch.rsplit("/", 1)[-1]
    protocol = recipe(Setting(num_classes, ipc, n_images, image_size, factor, arch))
    changes = {"name": name, "precision": precision} | ({"augmentation": Augmentation()} if plain else {})
    changes |= {"epochs": int(epochs)} if epochs else {}
    return dataclasses.replace(protocol, **changes)


def table_epochs(ipc: int, num_classes: int) -> int:
    """Epochs of IDC and Minimax by IPC; two thirds of them, rounded down to hundreds, from 100 classes."""
    bounds = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
    epochs = next((e for bound, e in bounds if ipc <= bound), 300)
    return epochs if num_classes < 100 else epochs * 2 // 3 // 100 * 100


def rded_batch(setting: Setting) -> int:
    """RDED's batch size by IPC, number of classes and images."""
    batch = 10 if setting.final_ipc <= 1 else 50 if setting.final_ipc <= 10 else 100
    if setting.image_size == 64 and setting.num_classes == 200:
        batch = 100
    elif _conv3_cifar100(setting):
        batch = 25
    elif setting.num_classes >= 100:
        batch *= 2
    return min(batch, setting.n_images)


def _conv3_cifar100(s: Setting) -> bool:
    return s.arch == "convnet3" and s.num_classes == 100 and s.image_size == 32


def _soft(s: Setting) -> Protocol:
    area = (1 / s.factor, 1.0)
    return Protocol(
        name="soft",
        optimizer="adamw",
        lr=2e-3 if _conv3_cifar100(s) else 1e-3,
        arch_lr=RDED_RATES,
        weight_decay=0.01,
        wd_on_matrices_only=True,
        schedule=Schedule("cosine", stretch=2.0),
        epochs=300,
        batch=rded_batch(s),
        augmentation=Augmentation(tiles=s.factor, crop_area=area, flip=True, cutmix=1.0),
        loss="kl",
        temperature=20.0,
        labels="soft",
        image_size=s.image_size,
        test_resize=s.large_resize,
    )


def _rded(s: Setting) -> Protocol:
    checks = tuple(e / 300 for e in range(250, 301, 10))
    return dataclasses.replace(_soft(s), checks=checks, double_bn_update=True)


def _rd3(s: Setting) -> Protocol:
    stretch = 1.0 if s.arch.startswith("resnet18") or not s.arch else 2.0
    schedule = Schedule("cosine", stretch=stretch)
    return dataclasses.replace(_soft(s), epochs=400, batch=min(50, s.n_images), schedule=schedule)


def _infoutil(s: Setting) -> Protocol:
    soft = _soft(s)
    return dataclasses.replace(soft, augmentation=dataclasses.replace(soft.augmentation, autoaugment=True))


def _hard(s: Setting) -> Protocol:
    many = s.num_classes > 100
    return Protocol(
        name="hard",
        optimizer="sgd",
        lr=0.1 if many else 0.01,
        weight_decay=1e-4 if many else 5e-4,
        schedule=Schedule("step", milestones=(2 / 3, 5 / 6), gamma=0.2),
        epochs=table_epochs(s.final_ipc, s.num_classes),
        batch=128 if many else 64,
        augmentation=Augmentation(
            crop_area=HALF_CROP, flip=True, jitter=(0.4, 0.4, 0.4), lighting=0.1, cutmix=1.0, cutmix_alpha=1.0
        ),
        loss="ce",
        labels="hard",
        norm="instance",
        image_size=s.image_size,
        test_resize=s.image_size,
    )


def _glad(s: Setting) -> Protocol:
    return Protocol(
        name="glad",
        optimizer="sgd",
        lr=1e-3,
        arch_lr=(("vgg", 1e-4),),
        weight_decay=5e-4,
        schedule=Schedule("warmup_cosine", warmup=0.5, start=1e-7),
        epochs=1000,
        batch=256,
        augmentation=Augmentation(dsa="one"),
        loss="ce",
        labels="hard",
        ema=0.995,
        norm="instance",
        image_size=s.image_size,
        test_resize=s.image_size,
        checks=(1.0,),
    )


def _dsco_hard(s: Setting) -> Protocol:
    hard = _hard(s)
    return dataclasses.replace(
        hard,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        batch=64,
        test_resize=s.large_resize,
        checks=_every_ten(hard.epochs, 2 / 3),
    )


def _dsco_soft(s: Setting) -> Protocol:
    epochs = table_epochs(s.ipc, s.num_classes)
    return dataclasses.replace(
        _dsco_hard(s),
        schedule=Schedule("cosine", stretch=2.0),
        epochs=epochs,
        checks=_every_ten(epochs, 2 / 3),
        loss="kl",
        temperature=20.0,
        labels="soft",
    )


def _dsco_cifar(s: Setting) -> Protocol:
    return dataclasses.replace(
        _dsco_hard(s),
        schedule=Schedule("step", milestones=(2 / 3, 5 / 6), gamma=0.1),
        augmentation=Augmentation(dsa="all", cutmix=0.5),
        test_resize=s.image_size,
    )


def _dsco_in1k(s: Setting) -> Protocol:
    epochs = 300 if s.final_ipc <= 100 else 100
    return dataclasses.replace(
        _soft(s),
        lr=1e-3,
        arch_lr=(),
        wd_on_matrices_only=False,
        epochs=epochs,
        batch=min(100 if s.final_ipc <= 10 else 200, s.n_images),
        augmentation=Augmentation(crop_area=HALF_CROP, flip=True, cutmix=1.0),
        checks=_every_ten(epochs, 0.8),
    )


def _fkd(s: Setting) -> Protocol:
    return dataclasses.replace(
        _soft(s),
        lr=1e-3,
        arch_lr=(),
        wd_on_matrices_only=False,
        schedule=Schedule("cosine"),
        batch=1024,
        accumulate=2,
        augmentation=Augmentation(crop_area=SOFT_CROP, flip=True, cutmix=1.0),
    )


def _rethink_soft(s: Setting) -> Protocol:
    return dataclasses.replace(_fkd(s), batch=128, accumulate=1)


def _rethink_hard(s: Setting) -> Protocol:
    plan = Augmentation(crop_area=SOFT_CROP, flip=True)
    return dataclasses.replace(_rethink_soft(s), augmentation=plan, loss="ce", labels="hard", temperature=1.0)


def _quick(recipe: Callable[[Setting], Protocol]) -> Callable[[Setting], Protocol]:
    def quick(s: Setting) -> Protocol:
        protocol = recipe(s)
        return dataclasses.replace(protocol, epochs=max(1, protocol.epochs // 10))

    return quick


def _every_ten(epochs: int, start: float) -> tuple[float, ...]:
    """Checks every ten epochs after the share `start` of the run, and at its end."""
    first = math.floor(start * epochs + 1e-9)
    return (*(e / epochs for e in range(first + 10, epochs, 10)), 1.0)


RECIPES: dict[str, Callable[[Setting], Protocol]] = {
    "hard": _hard,
    "soft": _soft,
    "rded": _rded,
    "glad": _glad,
    "dsco_hard": _dsco_hard,
    "dsco_soft": _dsco_soft,
    "dsco_in1k": _dsco_in1k,
    "dsco_cifar": _dsco_cifar,
    "fkd": _fkd,
    "rethink_soft": _rethink_soft,
    "rethink_hard": _rethink_hard,
    "rd3": _rd3,
    "infoutil": _infoutil,
    "quick": _quick(_hard),
    "quick_soft": _quick(_soft),
}
PROTOCOLS = tuple(RECIPES)
