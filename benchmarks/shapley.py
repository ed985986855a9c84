"""Speed of our default Shapley estimator against Captum's KernelShap at equal error, on the same teacher and images.

Truth is the exact table of all 2^16 coalitions per image. Captum's error as a function of its sample count is found
from those tables with our estimator `captum`, which draws and solves as Captum does (a test proves it); Captum itself
then runs at the count that reaches our error, one coalition per forward (its default) and 25 per forward. Errors are
mean relative L2 over images. With one thread the clock is CPU seconds of this process, so neighbors do not count.

The digits teacher is trained for a few epochs; `resnet18` has random weights, whose games are far from order 2.

    python benchmarks/shapley.py [--teacher digits|resnet18] [--images 8]
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from machine import clock, finish, machine, timed
from torch import nn

from raydd.keyed import numpy_rng, torch_rng
from raydd.models.convnet import ConvNet
from raydd.models.torchvisions import torchvision_models
from raydd.score.designs import build_design
from raydd.score.draws import captum_masks
from raydd.score.game import fold_batchnorm, masked_values
from raydd.score.regression import regression_map, with_ends
from raydd.score.shapley import ShapleyScorer

GRID = 4
COUNTS = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 8 x 8 digits as normalized float32 [1797, 3, 32, 32], and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    x = F.interpolate(x, size=32, mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    return ((x - x.mean()) / x.std()).contiguous(), torch.tensor(data.target)


def trained_convnet(x: torch.Tensor, y: torch.Tensor, epochs: int) -> nn.Module:
    """A ConvNet-3 of width 32 trained for a few epochs: its games mean something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvNet(3, 10, 32, width=32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=torch_rng(0, epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def load(name: str, images: int, epochs: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor, float | None]:
    """Teacher, images, labels and, where it was trained, the teacher's accuracy on held-out images."""
    if name == "digits":
        x, y = digits()
        order = torch.randperm(len(x), generator=torch_rng(0, "split"))
        held, rest = order[:300], order[300:]
        net = trained_convnet(x[rest], y[rest], epochs)
        with torch.no_grad():
            accuracy = float((net(x[held]).argmax(1) == y[held]).float().mean())
        return net, x[held[:images]], y[held[:images]], accuracy
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision_models().resnet18(num_classes=10).eval()
    x = F.interpolate(torch.randn(images, 3, 8, 8, generator=torch_rng(0, "images")), size=32, mode="bicubic")
    return net, x, torch.arange(images) % 10, None


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float((np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)).mean())


def captum_error(table: np.ndarray, truth: np.ndarray, count: int, draws: int) -> float:
    """Mean error of Captum's estimator over images and `draws` designs each, from the exact tables [B, 2^P]."""
    masks = np.stack([captum_masks(GRID**2, count, numpy_rng(0, "benchmark", count, i)) for i in range(draws)])
    values = table[:, with_ends(masks) @ (1 << np.arange(GRID**2))]
    found = np.einsum("dpk,bdk->bdp", regression_map(masks), values)
    return relative_error(found, truth[:, None])


def count_for(error: float, curve: dict[int, float]) -> int:
    """Sample count at which the curve falls to `error`, by interpolation in logarithms."""
    counts, errors = np.log(list(curve)), np.log(list(curve.values()))
    return round(float(np.exp(np.interp(-np.log(error), -errors, counts))))


def run_captum(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, count: int, per_forward: int
) -> tuple[float, np.ndarray]:
    """Seconds per image and maps [B, P] of Captum's KernelShap, one image at a time as it asks for."""
    from captum.attr import KernelShap

    side = x.shape[-1] // GRID
    cells = torch.arange(GRID**2).view(1, 1, GRID, GRID).repeat_interleave(side, 2).repeat_interleave(side, 3)
    kernel, maps = KernelShap(net), []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        start = clock()
        for image, label in zip(x, y):
            options = dict(feature_mask=cells, n_samples=count, perturbations_per_eval=per_forward)
            maps.append(kernel.attribute(image[None], target=int(label), return_input_shape=False, **options)[0])
        seconds = (clock() - start) / len(x)
    return seconds, torch.stack(maps).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="digits", choices=("digits", "resnet18"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="of the digits teacher")
    parser.add_argument("--draws", type=int, default=40, help="designs per point of Captum's error curve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--estimator", default="border_windows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    net, x, y, accuracy = load(options.teacher, options.images, options.epochs)
    exact = build_design("exact", grid=GRID)
    folded = fold_batchnorm(net)
    table = masked_values(folded, x, y, torch.from_numpy(exact.masks), grid=GRID, max_batch=512).double().numpy()
    truth = table @ exact.map.T

    scorer = ShapleyScorer(net, estimator=options.estimator, grid=GRID)
    keys = [str(i) for i in range(len(x))]
    ours = relative_error(scorer(x, y, keys)["shapley"].double().numpy(), truth)
    ours_seconds = timed(lambda: scorer(x, y, keys)) / len(x)
    rows = x.repeat(64 // len(x) + 1, 1, 1, 1)[:64]
    plain_seconds = timed(lambda: _forward(net, rows)) / 64

    curve = {count: captum_error(table, truth, count, options.draws) for count in COUNTS}
    count = count_for(ours, curve)
    run_captum(net, x[:1], y[:1], 25, 25)
    one_seconds, one_maps = run_captum(net, x, y, count, 1)
    many_seconds, many_maps = run_captum(net, x, y, count, 25)

    print(f"teacher {options.teacher} (accuracy {accuracy}), {len(x)} images, {machine()}")
    print(f"{'estimator':<26}{'evaluations':>12}{'rel. L2':>10}{'s / image':>12}{'ratio':>8}")
    lines = [
        (options.estimator, scorer.evaluations, ours, ours_seconds),
        ("captum, 1 per forward", count, relative_error(one_maps, truth), one_seconds),
        ("captum, 25 per forward", count, relative_error(many_maps, truth), many_seconds),
    ]
    for name, evaluations, error, seconds in lines:
        print(f"{name:<26}{evaluations:>12}{error:>10.3f}{seconds:>12.4f}{seconds / ours_seconds:>8.1f}")
    print("captum's error by evaluations: " + ", ".join(f"{n} {e:.3f}" for n, e in curve.items()))

    finish(
        "shapley",
        speedup_vs_captum_at_equal_error=one_seconds / ours_seconds,
        speedup_vs_captum_25_per_forward=many_seconds / ours_seconds,
        evaluations=scorer.evaluations,
        captum_evaluations=count,
        captum_curve_reaches_our_error=min(curve.values()) <= ours,
        rel_l2=ours,
        captum_rel_l2=relative_error(one_maps, truth),
        seconds_per_image=ours_seconds,
        share_of_plain_forward_rate=plain_seconds * scorer.evaluations / ours_seconds,
        teacher=options.teacher,
        images=len(x),
    )


@torch.no_grad()
def _forward(net: nn.Module, x: torch.Tensor) -> None:
    net(x)


if __name__ == "__main__":
    main()
