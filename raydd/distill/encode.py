"""Distilled images as bytes. One codec per table of results: JPEG alone costs small images up to ten points."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from raydd.errors import choose

CODECS = ("auto", "png", "jpeg95", "jpeg75")


def resolve_codec(codec: str, size: int) -> str:
    """`auto` is lossless up to 64 px and JPEG q95 4:4:4 above (ours; RDED uses JPEG q75)."""
    choose("codec", codec, CODECS)
    return codec if codec != "auto" else "png" if size <= 64 else "jpeg95"


def encode(image: torch.Tensor, codec: str) -> bytes:
    """Encode one uint8 image [3,H,W]; the same pixels give the same bytes."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    sink = io.BytesIO()
    if codec == "png":
        picture.save(sink, "PNG", optimize=False)
    else:
        picture.save(sink, "JPEG", quality=int(codec.removeprefix("jpeg")), subsampling=0 if codec == "jpeg95" else -1)
    return sink.getvalue()


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic antialiased resize of uint8 images [B,3,h,w] to [B,3,size,size], rounded and clamped to uint8."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
