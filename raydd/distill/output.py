"""How a distilled set leaves a method: label form, label teacher, image codec. One set of options for all methods."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Labels and codec as in InfoUtil, so that a table has one label regime and one codec."""

    # Soft labels made while the student trains, stored per image, or none.
    labels: Literal["online", "single", "hard"] = "online"
    # Which teacher labels; None takes the early one up to IPC 10 if there is one, else the converged.
    label_teacher: Literal["early", "converged"] | None = None
    # Image codec; auto is lossless up to 64 px and JPEG q95 above.
    codec: Literal["auto", "png", "jpeg95", "jpeg75"] = "auto"
