"""The rows of `quality.py`: every method and switch that a table of this folder compares, by name."""

import dataclasses
from collections.abc import Callable

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import PRESETS as DSCO
from raydd.distill.infoutil.config import InfoUtilConfig, random_windows, rded
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.output import OutputConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.ld3m import make
from raydd.pipelines.method import Method
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples

# What a CPU affords of LD3M: a short chain, large steps, a pool of draws.
SMALL = Ld3mConfig(steps=5, iterations=60, move=0.03, real_batch=128, pool=20)
PIXELS = dataclasses.replace(SMALL, generator="pixels", steps=0, learn="latent")
# Steps and guidance for priors of small pictures.
SAMPLING = {"steps": 20, "guidance": 2.0}
UNGUIDED = SAMPLING | {"guidance": 1.0}


def changed(base: InfoUtilConfig, **switches) -> InfoUtilConfig:
    """A configuration with some switches of either part replaced."""
    crop = {k: v for k, v in switches.items() if hasattr(base.crop, k)}
    select = {k: v for k, v in switches.items() if hasattr(base.select, k)}
    assert len(crop) + len(select) == len(switches), switches
    return InfoUtilConfig(
        crop=dataclasses.replace(base.crop, **crop), select=dataclasses.replace(base.select, **select)
    )


def infoutil(name: str, base: Callable[[], InfoUtilConfig] = InfoUtilConfig, **switches) -> InfoUtil:
    """A row with the paper's windows of 2 x 2 patches at every size, unless `pool` says otherwise."""
    return InfoUtil(name, changed(base(), **({"pool": 2} | switches)))


ROWS: dict[str, Method] = {
    "random": Control("random", ControlConfig()),
    "kmeans": Control("kmeans", ControlConfig()),
    "herding": Control("herding", ControlConfig()),
    "rded": infoutil("rded", rded),
    "random-windows": infoutil("random-windows", random_windows),
    "infoutil": infoutil("infoutil"),
    "default": infoutil("infoutil-default", pool=None),
    # One switch changed at a time.
    "bottom": infoutil("infoutil-bottom", direction="bottom"),
    "median": infoutil("infoutil-median", direction="median"),
    "no-noise": infoutil("infoutil-no-noise", alpha=0.0),
    "captum25": infoutil("infoutil-captum25", estimator="captum", evaluations=25),
    "windows": infoutil("infoutil-windows", estimator="windows"),
    "pool3": infoutil("infoutil-pool3", pool=3),
    "pool3-bottom": infoutil("infoutil-pool3-bottom", pool=3, direction="bottom"),
    "pool3-median": infoutil("infoutil-pool3-median", pool=3, direction="median"),
    "whole-top": infoutil("infoutil-whole-top", crop_from="full", crops=1),
    "whole-bottom": infoutil("infoutil-whole-bottom", crop_from="full", crops=1, direction="bottom"),
    "whole-median": infoutil("infoutil-whole-median", crop_from="full", crops=1, direction="median"),
    "ce-bottom": infoutil("infoutil-ce-bottom", score="ce", direction="bottom"),
    "random-score": infoutil("infoutil-random-score", score="none"),
    "correct": infoutil("infoutil-correct", require_correct=True),
    "rded-gradnorm-top": infoutil("rded-gradnorm-top", rded, score="gradnorm", direction="top"),
    "rded-gradnorm-bottom": infoutil("rded-gradnorm-bottom", rded, score="gradnorm", direction="bottom"),
    "rded-random-score": infoutil("rded-random-score", rded, score="none"),
}


def matched(name: str, base: Ld3mConfig = SMALL, **switches) -> Method:
    """A row of LD3M with some switches replaced."""
    return make(name, dataclasses.replace(base, **switches), OutputConfig())


# Rows that draw from a prior (--prior), or are learned from pixels beside those that do.
GENERATED: dict[str, Method] = {
    "prior": PriorSamples("prior", PriorConfig(**SAMPLING)),
    "dsco-fast": Dsco("dsco-fast", dataclasses.replace(DSCO["dsco-fast"](), **SAMPLING)),
    "dsco": Dsco("dsco", dataclasses.replace(DSCO["dsco"](), rows_per_image=100, **SAMPLING)),
    # A fifth of the real images' noised copies per step, for sets of 50 images per class on a CPU.
    "dsco-fast-rows20": Dsco(
        "dsco-fast-rows20", dataclasses.replace(DSCO["dsco-fast"](), rows_per_image=20, **SAMPLING)
    ),
    # Without guidance, which narrows what a prior draws to what is typical.
    "prior-unguided": PriorSamples("prior-unguided", PriorConfig(**UNGUIDED)),
    "dsco-fast-unguided": Dsco("dsco-fast-unguided", dataclasses.replace(DSCO["dsco-fast"](), **UNGUIDED)),
    "dsco-free": Dsco("dsco-free", dataclasses.replace(DSCO["dsco-free"](), iterations=40, templates=100, **SAMPLING)),
    # From medoids of the class, noised to `real_level` of the steps; and the same without optimizing anything.
    "dsco-real": Dsco("dsco-real", dataclasses.replace(DSCO["dsco-fast"](), start="real", **SAMPLING)),
    "dsco-real-plain": Dsco(
        "dsco-real-plain", dataclasses.replace(DSCO["dsco-fast"](), start="real", iterations=0, **SAMPLING)
    ),
    "ld3m": matched("ld3m"),
    # The chosen real images as they are, and as the prior paints them before anything is learned.
    "start": matched("start", PIXELS, iterations=0),
    "start-painted": matched("start-painted", iterations=0),
    "ld3m-latent": matched("ld3m-latent", learn="latent"),
    "ld3m-condition": matched("ld3m-condition", learn="condition"),
    "ld3m-mean": matched("ld3m-mean", anchor="mean"),
    "ld3m-no-skip": matched("ld3m-no-skip", anchor="none"),
    "ld3m-gaussian": matched("ld3m-gaussian", init="gaussian"),
    "ld3m-fixed": matched("ld3m-fixed", noise="fixed"),
    "ld3m-autoencoder": matched("ld3m-autoencoder", steps=0, learn="latent"),
    "ld3m-dc": matched("ld3m-dc", loss="dc", real_batch=32),
    "pixels": matched("pixels", PIXELS),
    "pixels-free": matched("pixels-free", PIXELS, clamp=False),
    # About as long as LD3M takes, rather than as many iterations.
    "pixels-long": matched("pixels-long", PIXELS, iterations=600),
    "pixels-free-long": matched("pixels-free-long", PIXELS, clamp=False, iterations=600),
    "pixels-dc": matched("pixels-dc", PIXELS, loss="dc", real_batch=32),
    **{f"ld3m-T{steps}": matched(f"ld3m-T{steps}", steps=steps) for steps in (1, 2, 10, 20, 40)},
}
ROWS |= GENERATED

# LD3M from the images of another row, of the same IPC and seed, which is there already; and the switches that differ.
STARTED: dict[str, tuple[str, Ld3mConfig, dict[str, str | int]]] = {
    "ld3m-from-kmeans": ("kmeans", SMALL, {}),
    "ld3m-autoencoder-from-kmeans": ("kmeans", SMALL, {"steps": 0, "learn": "latent"}),
    "pixels-free-from-kmeans": ("kmeans", PIXELS, {"clamp": False}),
}


def started(name: str, place: Callable[[str], str]) -> Method:
    """A row of `STARTED`, from the images in the run that `place` has for the row that it starts from."""
    row, base, switches = STARTED[name]
    return matched(name, base, init=place(row), **switches)


# The rows of MTT: what is learned, and the switches that differ.
MTT: dict[str, tuple[Ld3mConfig, dict[str, str | float]]] = {
    "ld3m-mtt": (SMALL, {}),
    "pixels-mtt": (PIXELS, {}),
    "ld3m-tesla": (SMALL, {"mtt_gradient": "tesla"}),
    # Student steps that go further: 0.01 falls short of two epochs of 66 expert steps, 0.1 overshoots (MNIST).
    "ld3m-mtt-rate0.03": (SMALL, {"student_lr": 0.03}),
    "pixels-mtt-rate0.03": (PIXELS, {"student_lr": 0.03}),
    # Two passes over ten images per class: all of them in every student step are five times the work.
    "pixels-mtt-rate0.03-batch20": (PIXELS, {"student_lr": 0.03, "student_batch": 20}),
}


def along_experts(experts: str) -> dict[str, Method]:
    """The rows of MTT, which need a directory of `train-experts`."""
    return {
        name: matched(name, base, loss="mtt", experts=experts, pool=None, **switches)
        for name, (base, switches) in MTT.items()
    }
