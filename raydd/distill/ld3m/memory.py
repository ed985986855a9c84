"""How many steps of the chain may keep their activations, and whether an optimization fits at all (ours).

Keeping them saves up to a third of the time and changes no bit, so the answer may depend on the machine. What a call of
the denoiser or the decoder keeps is measured on two images; buffers that live only inside a layer are not seen, which
is one reason to plan with a quarter of what is free.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from raydd.distill.ld3m.generator import PriorGenerator
from raydd.errors import UserError

SHARE = 0.25
# Workers share a machine's memory without knowing of each other.
CPU_LIMIT = 2 << 30
# Of latents and conditions: value, gradient, momentum and noise. Of images: decoded, put together, gradient, clamped.
COPIES = 4
FLOAT = 4


def settle_steps(generator: PriorGenerator, c: Tensor | None, count: int) -> int:
    """Steps whose activations fit into a quarter of the free memory, for `count` images in chunks.

    c: a condition [1, ...] or None. Raises `UserError`, with the estimate and what to lower, where the optimization
    does not fit even if every call is computed again.
    """
    config = generator.config
    free = free_bytes(generator.device)
    chunk = min(config.chunk, count)
    # Images whose graphs wait for the loss: all, or those of one chunk in the second pass.
    waiting = count if config.graph == "one" else chunk
    step = step_bytes(generator, c, chunk) if config.steps else 0
    decoder = decoder_bytes(generator, min(config.decode_chunk or chunk, chunk))
    latent = _numel(generator.latent_shape)
    numbers = latent + (0 if c is None else c[0].numel()) + 3 * generator.image_size**2
    images = FLOAT * (count * COPIES * numbers + waiting * config.steps * latent)
    if free is not None and max(step, decoder) + images > free:
        fewer = "--ipc, or use --graph two" if waiting > chunk else "--ipc"
        _, remedy = max((step, "--chunk"), (decoder, "--decode-chunk"), (images, fewer))
        raise UserError(
            f"one step of {chunk} images needs {gib(step)}, the decoder {gib(decoder)}, {count} images {gib(images)}, "
            f"but {gib(free)} are free: lower {remedy}"
        )
    if config.keep_steps is not None:
        return config.keep_steps
    if free is None or not config.steps:
        return 0
    budget = SHARE * free if generator.device != "cpu" else min(SHARE * free, CPU_LIMIT)
    # A chunk that waits keeps the activations of its steps.
    chunks = -(-waiting // chunk)
    return max(0, min(config.steps, int((budget - images - decoder) // max(1, step * chunks))))


def step_bytes(generator: PriorGenerator, c: Tensor | None, chunk: int) -> int:
    """Bytes that one call of the denoiser keeps for the gradients of `chunk` images; c as in `settle_steps`."""

    def call(x: Tensor, count: int) -> object:
        given = None if c is None else c[:1].detach().expand(count, *c.shape[1:]).clone()
        if given is not None:
            given.requires_grad_(generator.config.learns[1])
        return generator.prior.denoise(x, generator.schedule, 0, given, generator.guidance, clip=False)

    return chunk * _kept_by_an_image(generator, call)


def decoder_bytes(generator: PriorGenerator, chunk: int) -> int:
    """Bytes that the decoder keeps for the gradients of `chunk` images."""
    return chunk * _kept_by_an_image(generator, lambda x, count: generator.prior.paint(x))


def _kept_by_an_image(generator: PriorGenerator, call: Callable[[Tensor, int], object]) -> int:
    """What a second image adds: parameters and tables are kept by either call, and fall out."""
    one, two = (_kept(generator, call, count) for count in (1, 2))
    return two - one


def _kept(generator: PriorGenerator, call: Callable[[Tensor, int], object], count: int) -> int:
    """Bytes of the storages that autograd keeps for a call on `count` latents."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(count, *generator.latent_shape, device=generator.device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        call(x, count)
    return sum(seen.values())


def free_bytes(device: str) -> int | None:
    """Free memory of a device; None where it cannot be known."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def gib(size: float) -> str:
    """A number of bytes, to be read."""
    return f"{size / 2**30:.2f} GiB"


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
