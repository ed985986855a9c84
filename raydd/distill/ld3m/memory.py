"""How many steps of the chain may keep their activations, and whether an optimization fits at all.

Keeping them saves a third of the time and changes no bit, so the answer may depend on the machine.
"""

import os

import torch
from torch import Tensor

from raydd.distill.ld3m.generator import PriorGenerator
from raydd.errors import UserError

SHARE = 0.25
# Workers share a machine's memory without knowing of each other.
CPU_LIMIT = 2 << 30
# Latent, condition, gradient, momentum; and per step of the graph about one latent.
COPIES = 4


def settle_steps(generator: PriorGenerator, c: Tensor | None, count: int) -> int:
    """Steps whose activations fit into a quarter of the free memory, for `count` images in chunks.

    c: a condition [1, ...] or None. Raises `UserError`, with the estimate, where the graph does not fit even if every
    step is computed again.
    """
    config = generator.config
    if not config.steps:
        return 0
    free = free_bytes(generator.device)
    chunk = min(config.chunk, count)
    step = step_bytes(generator, c, chunk)
    latents = 4 * count * (c.numel() if c is not None else 0) * COPIES
    latents += 4 * count * _numel(generator.latent_shape) * (COPIES + config.steps)
    if free is not None and step + latents > free:
        raise UserError(
            f"one step of {chunk} images needs {gib(step)}, {count} images and their graph {gib(latents)}, but "
            f"{gib(free)} are free: use a lower --chunk{' or --graph two' if latents > step else ''}"
        )
    if config.keep_steps is not None:
        return config.keep_steps
    if free is None:
        return 0
    budget = SHARE * free if generator.device != "cpu" else min(SHARE * free, CPU_LIMIT)
    chunks = -(-count // chunk) if config.graph == "one" else 1
    return min(config.steps, int((budget - latents) // max(1, step * chunks))) if budget > latents else 0


def step_bytes(generator: PriorGenerator, c: Tensor | None, chunk: int) -> int:
    """Bytes that one call of the denoiser keeps for its gradients, parameters apart."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in generator.prior.net.parameters()}
    # One image tells it for all.
    z = torch.zeros(1, *generator.latent_shape, device=generator.device).requires_grad_()
    schedule = generator.schedule
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        generator.prior.denoise(z, schedule, 0, None if c is None else c[:1], generator.guidance, clip=False)
    return chunk * sum(size for place, size in seen.items() if place not in own)


def free_bytes(device: str) -> int | None:
    """Free memory of a device; None where it cannot be known."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
