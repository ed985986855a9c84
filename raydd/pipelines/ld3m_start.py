"""Where latents and conditions of LD3M start: real images of the class, noise of their size, or the images of a run.

Real images are a keyed sample without repetition (ours; the authors draw with it), the next of which stand in for
broken ones. Their keys stay with the images that are made of them.
"""

import dataclasses

import torch
from torch import Tensor

from raydd.config import content_hash
from raydd.data.decode import decode_image
from raydd.distill.assemble import open_images
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import Generator
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.rates import rms
from raydd.errors import UserError
from raydd.keyed import smallest
from raydd.pipelines.job import Job
from raydd.store import distilled
from raydd.store.run import Run

# Images are drawn before anything is decoded: some spares at once stand in for broken ones.
SPARES = 16
Pictures = tuple[list[Tensor], list[tuple[str, ...]]]


def start_run(uri: str) -> str:
    """What the images of a run are, as a hash. Raises `UserError` if it holds no distilled set."""
    try:
        return content_hash(distilled.read_manifest(Run(uri))["hashes"])
    except UserError as error:
        raise UserError(f"--init {uri}: give real, gaussian, or the --out of a finished 'raydd distill'") from error


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a pack starts: latents, conditions (None: none), the pictures behind the latents uint8 [N,3,S,S] (None for
    noise), and their keys."""

    z: Tensor
    c: Tensor | None
    pictures: Tensor | None
    keys: list[tuple[str, ...]]


def make_start(learn: Ld3mConfig, job: Job, generator: Generator, pack: Pack) -> Start:
    """The start of a pack's images. Raises `UserError` for a class with too few readable images."""
    c, size = generator.conditions(pack.each(pack.labels)), generator.image_size
    if learn.init == "gaussian":
        sample = torch.stack(_from_source(job, pack.labels[0], size, least=1)[0])
        z = pack.noise(generator.latent_shape, "start") * rms(generator.encode(sample))
        return Start(z.to(generator.device), c, None, [()] * len(pack))
    real = learn.init == "real"
    parts = [
        _from_source(job, label, size, least=job.ipc) if real else _from_run(learn.init, job, label, size)
        for label in pack.labels
    ]
    pictures = torch.stack([picture for found, _ in parts for picture in found])
    z = torch.cat([generator.encode(part) for part in pictures.split(learn.chunk)])
    return Start(z, c, pictures, [key for _, keys in parts for key in keys])


def _from_source(job: Job, label: int, size: int, *, least: int) -> Pictures:
    """A keyed sample of `ipc` images of a class uint8 [3,S,S], or of at least `least`, and their keys."""
    name, keys, count = job.classes[label], job.keys(label), job.ipc
    order = [keys[i] for i in smallest(keys, len(keys), job.seed, "start", name)]
    found: dict[str, Tensor] = {}
    for first in range(0, len(order), count + SPARES):
        found |= open_images(job.source, order[first : first + count + SPARES], size)
        if len(found) >= count:
            break
    chosen = [key for key in order if key in found][:count]
    if len(chosen) < least:
        raise UserError(f"class {name!r} has {len(chosen)} readable images: use a lower --ipc, or mend the source")
    return [found[key] for key in chosen], [(key,) for key in chosen]


def _from_run(uri: str, job: Job, label: int, size: int) -> Pictures:
    """The first `ipc` images of a class of a run uint8 [3,S,S], and the keys of what they were made of."""
    run, name = Run(uri), job.classes[label]
    images = distilled.read_class(run, distilled.read_manifest(run)["classes"].index(name))[: job.ipc]
    pictures = [torch.tensor(decode_image(image.data, size)).permute(2, 0, 1) for image in images]
    return pictures, [image.source_keys for image in images]
