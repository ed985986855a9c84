"""InfoUtil's switches (arXiv 2601.21296), in two parts: what is computed per image, and what is chosen from it.

The first part decides the score table and can be shared by runs of any IPC, direction and label form; the second part
decides the distilled set. RDED, random crops scored by gradient norm, and InfoUtil are settings of one pipeline.
Tags: (paper), (RDED), (ours).
"""

import dataclasses
import math
from typing import Literal

from raydd.config import check_choices
from raydd.errors import UserError
from raydd.score.designs import build_design


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are found and scored."""

    # Shapley estimator. The paper used Captum's KernelShap (`captum`, 25 evaluations); the default is deterministic and
    # uses 52 evaluations (ours).
    estimator: Literal["border_windows", "windows", "border", "antithetic", "paired", "leverage", "captum", "exact"] = (
        "border_windows"
    )
    # Budget of the random estimators per image; None takes the estimator's own.
    evaluations: int | None = None
    # The teacher's output that the patches play for (the paper does not say; ours).
    game: Literal["logit", "probability", "margin"] = "logit"
    # What a masked patch shows; zero is after normalization (the paper does not say; ours).
    baseline: Literal["zero", "image_mean", "blur"] = "zero"
    # Patches per side (paper).
    grid: int = 4
    # Patches per side of a window. None takes 2 for mosaics (paper: a quarter of the area), and all but one where a
    # crop fills an image of its own: a quarter enlarged twice loses what small images show (ours, measured).
    pool: int | None = None
    # Where crops come from: Shapley heat (paper), uniformly random windows, RDED's random resized crops, whole images.
    crop_from: Literal["shapley", "random_window", "random_resized", "full"] = "shapley"
    # Crops per image: all but the last from noisy heat (paper, RDED: 5).
    crops: int = 5
    # Noise on the heat, in deviations of the image's heat (paper: 2); 0 takes the clean window only.
    alpha: float = 2.0
    # What ranks crops: gradient norm over all parameters (paper), of the last layer, EL2N, cross-entropy (RDED), none.
    score: Literal["gradnorm", "gradnorm_last", "el2n", "ce", "none"] = "gradnorm"
    # How the teacher sees a tile: zero-padded to full size (RDED), resized, or at its own size (global pooling only).
    score_input: Literal["padded", "resized", "native"] = "padded"
    # Score every window, so that alpha, seed and direction can change without a new pass.
    score_all_windows: bool = False

    @property
    def window(self) -> int:
        """Patches per side of a window; the paper's where `InfoUtilConfig.at` has not settled it."""
        return 2 if self.pool is None else self.pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which crops are kept, and what becomes of them."""

    # Keep the highest scores (paper), the lowest (RDED), or the middle ranks.
    direction: Literal["top", "bottom", "median"] = "top"
    # The best crop of each image (RDED's rule), its clean crop, or all distinct crops competing.
    per_image: Literal["best", "clean", "pooled"] = "best"
    # With `pooled`: most crops of one image.
    max_per_image: int = 1
    # Drop crops that the teacher misclassifies while enough others remain.
    require_correct: bool = False
    # Candidates per class (paper, RDED: 300; 600 at IPC 200), raised to 1.5 times what the set needs (ours).
    mipc: int = 300
    # Tiles per side of a mosaic; None takes 1 up to 64 px and 2 above (paper, RDED).
    factor: int | None = None
    # Which ranks share a mosaic: neighbors (paper) or strided (RDED).
    mosaic: Literal["consecutive", "strided"] = "consecutive"
    # Soft labels made while the student trains, stored per tile (the paper's pseudo-code) or per image, or none.
    labels: Literal["online", "patch", "single", "hard"] = "online"
    # Which teacher labels; None takes the early one up to IPC 10 if there is one (paper, appendix), else the converged.
    label_teacher: Literal["early", "converged"] | None = None
    # Image codec; auto is lossless up to 64 px and JPEG q95 above (ours; RDED: JPEG q75).
    codec: Literal["auto", "png", "jpeg95", "jpeg75"] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoUtilConfig:
    """InfoUtil: `crop` decides the score table, `select` the distilled set."""

    crop: CropConfig = CropConfig()
    select: SelectConfig = SelectConfig()

    def tile_factor(self, size: int) -> int:
        """Tiles per side at working size `size`."""
        return (1 if size <= 64 else 2) if self.select.factor is None else self.select.factor

    def at(self, size: int) -> "InfoUtilConfig":
        """The same with the window's size settled for working size `size`."""
        if self.crop.pool is not None:
            return self
        pool = 2 if self.tile_factor(size) > 1 else max(1, self.crop.grid - 1)
        return dataclasses.replace(self, crop=dataclasses.replace(self.crop, pool=pool))

    def check(self, size: int) -> None:
        """Raise `UserError` for an unknown switch, or a size that the grid or the mosaic does not divide."""
        crop, select = self.at(size).crop, self.select
        for part in (crop, select):
            check_choices(part)
        factor = self.tile_factor(size)
        _check_range("grid", crop.grid, 1, size)
        _check_range("pool", crop.window, 1, crop.grid)
        _check_range("factor", factor, 1, size)
        _check_range("crops", crop.crops, 1)
        _check_range("alpha", crop.alpha, 0)
        _check_range("mipc", select.mipc, 1)
        _check_range("max-per-image", select.max_per_image, 1, crop.crops)
        for name, parts in (("grid", crop.grid), ("factor", factor)):
            if size % parts:
                raise UserError(f"--size {size} is not divisible by --{name} {parts}: change one of them")
        if crop.crop_from == "shapley":
            build_design(crop.estimator, grid=crop.grid, pool=crop.window, evaluations=crop.evaluations, seed=0)


def _check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise UserError(f"--{name} {value}: must be {limits}")


def paper() -> InfoUtilConfig:
    """The paper as most plausibly run: Captum's KernelShap at its default of 25 evaluations."""
    return InfoUtilConfig(crop=CropConfig(estimator="captum", evaluations=25, pool=2))


def fast() -> InfoUtilConfig:
    """18 window games and crop-sized scoring: about a third of the default's cost (ours)."""
    return InfoUtilConfig(crop=CropConfig(estimator="windows", score_input="native"))


def rded() -> InfoUtilConfig:
    """RDED (arXiv 2312.03526): random resized crops, lowest cross-entropy, strided mosaics.

    RDED labels with the converged teacher; here every row of a table has the same label teacher, unless told otherwise.
    """
    return InfoUtilConfig(
        crop=CropConfig(crop_from="random_resized", score="ce"),
        select=SelectConfig(direction="bottom", mosaic="strided"),
    )


def random_windows() -> InfoUtilConfig:
    """Uniformly random windows, tiled, without attribution or score: isolates the mosaic and its field of view."""
    return InfoUtilConfig(crop=CropConfig(crop_from="random_window", score="none", crops=1))


def large_ipc() -> InfoUtilConfig:
    """Whole images, one per distilled image, out of 600 candidates: the paper at IPC 200 on ImageNet-1K."""
    return InfoUtilConfig(crop=CropConfig(crop_from="full", crops=1), select=SelectConfig(mipc=600, factor=1))


PRESETS = {"default": InfoUtilConfig, "paper": paper, "fast": fast, "rded": rded, "random_windows": random_windows}
