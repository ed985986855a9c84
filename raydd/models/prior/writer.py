"""A trained prior as a diffusers pipeline directory: one folder per component, and `model_index.json` last.

A stock class opens each kind: DDPMPipeline for a pixel-space UNet, LDMPipeline for a UNet over an autoencoder,
DiTPipeline for a DiT (in pixel space: with `vae=None`). `raydd.json` beside it holds what diffusers has
no place for: class names, null label, source, recipe. A directory without `model_index.json` is unfinished.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from raydd.models.prior.folder import INDEX, OURS
from raydd.store import filesystem
from raydd.store.plain import read_json

PARTS = ("transformer", "unet", "vae", "vqvae", "scheduler")


def write_pipeline(
    out: str,
    net: nn.Module,
    scheduler: Mapping[str, Any],
    *,
    autoencoder: nn.Module | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write the denoiser, a DDPMScheduler of the config `scheduler`, and the autoencoder, as safetensors and JSON.

    `out` is a path or any fsspec URI that can be written; `facts` are added to raydd.json.
    """
    import diffusers  # seconds, which only those who write pay

    transformer = type(net).__name__ == "DiTTransformer2DModel"
    parts = {"transformer" if transformer else "unet": net}
    if autoencoder is not None:
        parts["vae" if transformer else "vqvae"] = autoencoder
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    if transformer:
        index = {"id2label": {str(i): name for i, name in enumerate(classes)}, "vae": [None, None]} | index
    stock = "DiTPipeline" if transformer else "DDPMPipeline" if autoencoder is None else "LDMPipeline"
    index = {"_class_name": stock, "_diffusers_version": diffusers.__version__} | index
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            part.save_pretrained(os.path.join(folder, name), safe_serialization=True)
        diffusers.DDPMScheduler(**scheduler).save_pretrained(os.path.join(folder, "scheduler"))
        for name in filesystem.list_files(folder):
            with open(os.path.join(folder, name), "rb") as file:
                filesystem.write_atomic(filesystem.join(out, name), file.read())
    ours = {"classes": list(classes), "null_label": len(classes), **facts}
    for name, content in ((OURS, ours), (INDEX, index)):
        filesystem.write_atomic(filesystem.join(out, name), json.dumps(content, indent=1).encode())


def read_facts(out: str) -> dict[str, Any] | None:
    """The raydd.json of a finished prior; None where there is none."""
    if not filesystem.exists(filesystem.join(out, INDEX)) or not filesystem.exists(filesystem.join(out, OURS)):
        return None
    return read_json(filesystem.join(out, OURS))
