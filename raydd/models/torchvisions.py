"""The one way to torchvision's classifiers: `torchvision_models()` imports them, also beside a torch of another build.

torchvision's wheel from the default package index links CUDA, so beside a CPU-only torch its C++ operators do not load,
and the import itself then fails on detection operators that have no schema (pytorch/vision issue 9085, so in 0.28 too).
Classifiers do not use them, so the schemas are declared and the import repeated. Remove this when torchvision guards
all of its `_meta_registrations` by `_has_ops()`.
"""

import functools
from types import ModuleType

import torch

from raydd.errors import UserError

NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def torchvision_models() -> ModuleType:
    """`torchvision.models`; raises `UserError` where torchvision cannot be imported beside the installed torch."""
    try:
        from torchvision import models
    except RuntimeError:
        _declare_detection_operators()
        try:
            from torchvision import models
        except (ImportError, RuntimeError) as error:
            raise _misfit(error) from error
    except ImportError as error:
        raise _misfit(error) from error
    return models


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classifiers, sorted (segmentation, detection, video and quantized nets are left out)."""
    models = torchvision_models()
    return tuple(models.list_models(module=models))


@functools.cache
def _declare_detection_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + NMS)
    return library


def _misfit(error: Exception) -> UserError:
    return UserError(
        f"torchvision does not fit torch {torch.__version__} ({str(error).splitlines()[0]}): "
        "install torch and torchvision of matching versions from the same package index"
    )
