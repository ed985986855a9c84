"""`load_prior`: a prior from what diffusers saves: a class-conditional DiT or UNet, pixels or latents, any schedule.

Served: DiTTransformer2DModel (labels 0 ... N - 1, null label N), UNet2DModel with or without class embeddings (a null
label only where raydd.json records one), AutoencoderKL, AutoencoderTiny, VQModel or none, and the schedulers of
`schedule.py`. Everything else is refused by the name of its class. diffusers is asked for safetensors only.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raydd.config import content_hash
from raydd.errors import UserError
from raydd.models.prior.autoencoder import AUTOENCODERS, Latents, Pixels, Space
from raydd.models.prior.folder import INDEX, OURS, files_hash, local_folder, read_json
from raydd.models.prior.labels import map_labels
from raydd.models.prior.opened import OpenedPrior, uses_bf16
from raydd.models.prior.schedule import read_table

# Folder names of the parts, and the classes they may hold; older DiT pipelines name the class they were split from.
DENOISERS = {"transformer": ("DiTTransformer2DModel", "Transformer2DModel"), "unet": ("UNet2DModel",)}
SPACES = ("vae", "vqvae")


def load_prior(
    name: str,
    *,
    device: str = "cpu",
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, int | str] | None = None,
    size: int | None = None,
    guidance_channels: str = "all",
    spacing: str = "linspace",
    precision: str = "auto",
) -> OpenedPrior:
    """Open a prior from a directory, URI or hub id; its weights are frozen.

    classes: the source's class names; labels given to the prior then count in these, matched to its own by name or by
    `class_map`. size: the source's working size, which the prior's images must reach (they are made smaller where
    asked for, never larger). guidance_channels: all | first3. spacing: of the timesteps. precision: of the denoiser;
    auto is bfloat16 on CUDA that has it. Raises `UserError` for everything that does not fit.
    """
    with local_folder(name) as folder:
        index = read_json(folder, INDEX)
        if index is None:
            raise UserError(f"{name} is no diffusers pipeline (it has no {INDEX}): finish 'raydd train-prior' there")
        part, space_part = _denoiser_part(index, name), _space_part(index, name)
        net = _load(folder, part, DENOISERS[part][0], name)
        space = Latents(_load(folder, space_part, index[space_part][1], name)) if space_part else None
        scheduler = read_json(folder, "scheduler", "scheduler_config.json")
        if scheduler is None:
            raise UserError(f"the prior {name} has no scheduler/scheduler_config.json: copy it whole")
        ours = read_json(folder, OURS) or {}
        hashed = files_hash(folder, [p for p in (part, space_part, "scheduler") if p])
    space = space or Pixels(int(net.config["in_channels"]))
    _check_channels(net, space, name)
    latent_size = _latent_size(net, space, size, name)
    own, count, null = _conditioning(net, part, index, ours, name)
    labels = None
    if count is not None:
        labels = range(count) if classes is None else map_labels(classes, own, count, class_map, name)
    # As a plain module: diffusers' own `to` warns of a cast that leaves float32 as it is.
    net = nn.Module.to(net, device, torch.bfloat16 if uses_bf16(precision, device) else torch.float32)
    if isinstance(space, Latents):
        space.net.to(device)
    decided = [hashed, list(labels or ()), null, latent_size, guidance_channels, spacing, precision]
    return OpenedPrior(
        net,
        space,
        read_table(scheduler, pixels=space_part is None),
        latent_size=latent_size,
        labels=labels,
        null=null,
        num_classes=count,
        classes=tuple(classes) if classes is not None and count is not None else own,
        guidance_channels=guidance_channels,
        spacing=spacing,
        hash=content_hash(decided, 16),
        device=device,
    )


def load_autoencoder(name: str, device: str = "cpu") -> Latents:
    """Open an autoencoder by itself, or the one of a pipeline, from a directory, URI or hub id."""
    with local_folder(name) as folder:
        index = read_json(folder, INDEX)
        part = "." if index is None else _space_part(index, name)
        config = part and read_json(folder, part, "config.json")
        if not config:
            raise UserError(f"no autoencoder at {name}: give a directory of AutoencoderKL, AutoencoderTiny or VQModel")
        kind = config.get("_class_name", "?")
        if kind not in AUTOENCODERS:
            raise UserError(f"{name} holds a {kind}: raydd knows {', '.join(AUTOENCODERS)}")
        space = Latents(_load(folder, part, kind, name), files_hash(folder, [part]))
    space.net.to(device)
    return space


def _denoiser_part(index: Mapping[str, Any], name: str) -> str:
    for part, kinds in DENOISERS.items():
        kind = (index.get(part) or [None, None])[1]
        if kind in kinds:
            return part
        if kind is not None:
            raise UserError(
                f"the prior {name} has a {kind} as its {part}: raydd knows DiTTransformer2DModel, UNet2DModel"
            )
    raise UserError(f"the prior {name} is a {index.get('_class_name', 'pipeline')} without a transformer or unet")


def _space_part(index: Mapping[str, Any], name: str) -> str | None:
    for part in SPACES:
        kind = (index.get(part) or [None, None])[1]
        if kind in AUTOENCODERS:
            return part
        if kind is not None:
            raise UserError(f"the prior {name} has a {kind} as its {part}: raydd knows {', '.join(AUTOENCODERS)}")
    return None


def _load(folder: str, part: str, kind: str, name: str) -> nn.Module:
    import diffusers

    path = os.path.join(folder, part)
    if not os.path.isdir(path):
        raise UserError(f"the prior {name} has no folder {part}: copy it whole")
    if not any(file.endswith(".safetensors") for file in os.listdir(path)):
        raise UserError(
            f"{name}/{part} has no safetensors file, and pickled weights are never read: load it elsewhere and "
            "write it again with save_pretrained(..., safe_serialization=True)"
        )
    try:
        net, found = getattr(diffusers, kind).from_pretrained(
            path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{name}/{part} is no {kind} ({' '.join(str(error).split())[:200]})") from error
    if missing := sorted(found["missing_keys"]):
        # diffusers would leave random numbers there.
        raise UserError(f"{name}/{part} lacks {missing[0]} and {len(missing) - 1} more weights: copy or train it again")
    return net.eval().requires_grad_(False)


def _check_channels(net: nn.Module, space: Space, name: str) -> None:
    taken = int(net.config["in_channels"])
    given = int(net.config.get("out_channels") or taken)
    if taken != space.channels or given not in (taken, 2 * taken):
        raise UserError(
            f"the denoiser of {name} takes {taken} channels and gives {given}, but its autoencoder has "
            f"{space.channels}: the parts do not belong together"
        )


def _latent_size(net: nn.Module, space: Space, size: int | None, name: str) -> int:
    latent = net.config.get("sample_size")
    if isinstance(latent, (list, tuple)):
        if len(set(latent)) > 1:
            raise UserError(f"the prior {name} makes images of {latent[0]} x {latent[1]}: raydd works on squares")
        latent = latent[0]
    if latent is None:
        if size is None or size % space.factor:
            raise UserError(f"the prior {name} states no image size: give one that divides by {space.factor}")
        return size // space.factor
    if size is not None and int(latent) * space.factor < size:
        made = int(latent) * space.factor
        raise UserError(
            f"the prior {name} makes images of {made} px, too small for {size} px: use --size {made} or less"
        )
    return int(latent)


def _conditioning(
    net: nn.Module, part: str, index: Mapping[str, Any], ours: Mapping[str, Any], name: str
) -> tuple[tuple[str, ...] | None, int | None, int | None]:
    """The prior's class names, its number of labels, and its null label; None where it has none."""
    names = ours.get("classes")
    if names is None and (known := index.get("id2label")):
        names = [known[key] for key in sorted(known, key=int)]
    if part == "transformer":
        count = int(net.config["num_embeds_ada_norm"])
        null = count
    else:
        if net.config.get("class_embed_type") is not None:
            raise UserError(f"the UNet of {name} embeds classes as {net.config['class_embed_type']!r}: it needs labels")
        if net.config.get("num_class_embeds") is None:
            return None, None, None
        null = ours.get("null_label")
        count = int(net.config["num_class_embeds"]) - (null is not None)
    if names is not None and len(names) != count:
        raise UserError(f"the prior {name} has {count} labels but records {len(names)} class names: copy it whole")
    return (None if names is None else tuple(names)), count, null
