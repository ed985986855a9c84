"""One operation of a plan, run alone with the networks and the switches of the real thing: source, teacher and prior.

A probe is opened once and then called with numbers of rows. Numbers are random where only shapes matter. `*_back` runs
the forward as well. Those of noise optimization and of matching stand in `probes_match.py`.
"""

from collections.abc import Callable

import torch

from raydd.distill import controls
from raydd.distill.encode import encode
from raydd.distill.infoutil.crops import crop_boxes
from raydd.distill.infoutil.mosaic import cut
from raydd.distill.ld3m.generator import PriorGenerator
from raydd.keyed import numpy_rng
from raydd.pipelines.plan.bench import Bench, Run
from raydd.pipelines.plan.cost import Op, feature_count
from raydd.score.game import fold_batchnorm, masked_values
from raydd.score.gradnorm import GradNorm
from raydd.score.latents import LatentEncoder
from raydd.score.outputs import Outputs


def read(bench: Bench, op: Op) -> Run:
    """Shards of the source, whatever number of rows is asked for."""
    shards = bench.shards(int(op.of.split()[0]))
    return lambda rows: next(shards)


def save(bench: Bench, op: Op) -> Run:
    codec = op.of.split()[0]

    def run(rows: int) -> int:
        for image in bench.pixels(rows, bench.job.size):
            encode(image, codec)
        return rows

    return run


def encode_latents(bench: Bench, op: Op) -> Run:
    size = bench.prior.image_size

    def run(rows: int) -> int:
        images = bench.pixels(rows, size).permute(0, 2, 3, 1).numpy()
        LatentEncoder(bench.prior, batch=rows)(images, [0] * rows, [str(row) for row in range(rows)])
        return rows

    return run


def denoise(bench: Bench, op: Op) -> Run:
    return _chain(bench, grad=False)


def denoise_back(bench: Bench, op: Op) -> Run:
    return _chain(bench, grad=True)


def _chain(bench: Bench, grad: bool) -> Run:
    """A call of the denoiser with the guidance of the method, and through conditions where there are gradients."""
    prior, guidance = bench.prior, _guidance(bench)
    schedule, passes = prior.schedule(2), 1 if guidance == 1 else 2

    def run(rows: int) -> int:
        images = max(1, rows // passes)
        x = bench.latents(images).requires_grad_(grad)
        given = None if prior.num_classes is None else torch.zeros(images, dtype=torch.int64)
        if grad and given is not None:
            given = prior.conditions(given).requires_grad_()
        with torch.set_grad_enabled(grad):
            found = prior.denoise(x, schedule, 1, given, guidance)
            if grad:
                (found.clean.sum() + found.noise.sum()).backward()
        return images * passes

    return run


def _guidance(bench: Bench) -> float:
    method = bench.method
    if hasattr(method, "learn"):
        return PriorGenerator(bench.prior, method.learn, bench.job.size).guidance
    return method.nopt.guidance if hasattr(method, "nopt") else method.config.guidance


def paint(bench: Bench, op: Op) -> Run:
    return lambda rows: len(bench.prior.decode(bench.latents(rows)))


def paint_back(bench: Bench, op: Op) -> Run:
    def run(rows: int) -> int:
        bench.prior.paint(bench.latents(rows).requires_grad_()).sum().backward()
        return rows

    return run


def game(bench: Bench, op: Op) -> Run:
    job, crop = bench.job, bench.method.config.crop
    model = fold_batchnorm(bench.teacher.model)
    options = {"grid": crop.grid, "game": crop.game, "baseline": crop.baseline, "precision": job.precision}

    def run(rows: int) -> int:
        masks = torch.from_numpy(numpy_rng("plan").random((rows, crop.grid**2)) < 0.5)
        masked_values(model, *_seen(bench, 1, job.size), masks, max_batch=rows, **options)
        return rows

    return run


def cut_crops(bench: Bench, op: Op) -> Run:
    """Crops of images one by one, as wide as the method makes them, and where they are drawn from."""
    size, factor = bench.job.size, bench.method.factor(bench.job.size)
    crop = bench.method.config.at(size).crop
    heat = numpy_rng("plan").standard_normal((crop.grid - crop.window + 1) ** 2)

    def run(rows: int) -> int:
        found: list[torch.Tensor] = []
        for row, image in enumerate(bench.pixels(rows, size)):
            ids, boxes = crop_boxes(crop, size, factor, "plan", str(row), 0, heat)
            found += [cut(image, boxes[i], size // factor) for i in ids[: rows - len(found)]]
        return len(found)

    return run


def teacher(bench: Bench, op: Op) -> Run:
    return _scored(bench, op, Outputs(bench.teacher.model))


def gradnorm(bench: Bench, op: Op) -> Run:
    return _scored(bench, op, GradNorm(bench.teacher.model))


def _scored(bench: Bench, op: Op, score: Callable[[torch.Tensor, torch.Tensor], object]) -> Run:
    size = int(op.of.split(" at ")[1].split()[0])

    def run(rows: int) -> int:
        score(*_seen(bench, rows, size))
        return rows

    return run


def _seen(bench: Bench, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized images [rows,3,size,size] as the teacher sees them, and labels."""
    pixels = bench.pixels(rows, bench.job.size)[:, :, :size, :size].to(bench.device)
    return bench.teacher.normalize(pixels), torch.zeros(rows, dtype=torch.int64, device=bench.device)


def choose(bench: Bench, op: Op) -> Run:
    ipc, count = bench.job.ipc, feature_count(bench.job)

    def run(rows: int) -> int:
        images = max(ipc, rows // ipc)
        features = numpy_rng("plan").standard_normal((images, count))
        controls.choose_by_features(bench.method.name, [str(row) for row in range(images)], features, "plan", ipc, 0)
        return images * ipc

    return run


PROBES = {
    "read": read,
    "save": save,
    "encode": encode_latents,
    "denoise": denoise,
    "denoise_back": denoise_back,
    "paint": paint,
    "paint_back": paint_back,
    "game": game,
    "cut": cut_crops,
    "teacher": teacher,
    "gradnorm": gradnorm,
    "choose": choose,
}
