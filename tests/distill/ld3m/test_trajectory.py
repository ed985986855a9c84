"""Constant-memory gradients of MTT against autograd through the whole student, TESLA's formula, central differences and
plain steps of the network itself (float64); student steps are keyed chunks of permutations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydd.augment.dsa import COLUMNS, GROUPS, Dsa, apply_dsa
from raydd.distill.ld3m.trajectory import Matched, Step, draw_steps, match_loss, match_trajectory
from raydd.keyed import torch_rng
from raydd.models.convnet import ConvNet
from raydd.models.flat import FlatNet

COUNT, CLASSES, SIZE = 5, 3, 8
GRADIENTS = ["adjoint", "tesla", "unrolled"]
LABELS = torch.tensor([0, 1, 2, 0, 1])
ALPHA = torch.tensor(0.05, dtype=torch.float64)


def draw(*shape: int, key: object) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng(key), dtype=torch.float64)


IMAGES = draw(COUNT, 3, SIZE, SIZE, key="images")


def problem(depth: int = 2) -> dict:
    """A network, an expert's point, and a point some way off that the student does not reach."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = FlatNet(ConvNet(depth, CLASSES, SIZE, width=8, norm="instance"))
    start = net.parameters().double()
    target = start + 0.02 * draw(len(net), key="target")
    return {"net": net, "start": start, "target": target, "images": IMAGES, "labels": LABELS, "alpha": ALPHA}


def all_steps(steps: int) -> list[Step]:
    return draw_steps("test", count=COUNT, batch=None, steps=steps)


def chunked_steps(steps: int) -> list[Step]:
    return draw_steps("test", count=COUNT, batch=2, steps=steps)


def assert_close(found: Matched, expected: Matched) -> None:
    for name in ("loss", "images", "alpha"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a - b).norm() <= 1e-12 * b.norm(), name


def slope(net, point, images, labels, step):
    logits = net(point, apply_dsa(images[step.index], step.dsa))
    return torch.autograd.grad(F.cross_entropy(logits, labels[step.index]), point, create_graph=True)[0]


def with_constant_points(net, start, target, images, labels, alpha, steps) -> Matched:
    """TESLA's definition: theta_n = theta_0 - alpha sum_i g_i, in which only the explicit images and alpha vary."""
    images, alpha, point, total = images.clone().requires_grad_(), alpha.clone().requires_grad_(), start, 0.0
    for step in steps:
        g = slope(net, point.detach().requires_grad_(), images, labels, step)
        total, point = total + g, point - alpha.detach() * g.detach()
    loss = (start - alpha * total - target).square().sum() / (start - target).square().sum()
    return Matched(loss.detach(), *torch.autograd.grad(loss, (images, alpha)))


@pytest.mark.parametrize("make", [all_steps, chunked_steps])
def test_tesla_is_autograd_with_constant_points(make):
    given, steps = problem(), make(5)
    assert_close(match_trajectory(**given, steps=steps, gradient="tesla"), with_constant_points(**given, steps=steps))


def test_tesla_is_its_explicit_formula():
    """u = (2 alpha / V) (phi - theta_0 + alpha G), dL/dS = d(u . g)/dS, dL/dalpha = -(2/V) G . (theta_n - phi)."""
    given, steps = problem(), all_steps(4)
    net, start, target = given["net"], given["start"], given["target"]
    images, points = IMAGES.clone().requires_grad_(), [start]
    for step in steps:
        points.append(points[-1] - ALPHA * slope(net, points[-1].clone().requires_grad_(), images, LABELS, step))
    slopes = [slope(net, p.detach().requires_grad_(), images, LABELS, step) for p, step in zip(points, steps)]
    total, scale = sum(slopes).detach(), (start - target).square().sum()
    u = 2 * ALPHA / scale * (target - start + ALPHA * total)
    expected = Matched(
        ((start - ALPHA * total - target).square().sum() / scale),
        torch.autograd.grad(sum(u @ g for g in slopes), images)[0],
        -2 / scale * (total @ (start - ALPHA * total - target)),
    )
    assert_close(match_trajectory(**given, steps=steps, gradient="tesla"), expected)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("make", [all_steps, chunked_steps])
def test_adjoint_is_the_unrolled_gradient(make, depth):
    given, steps = problem(depth), make(5)
    found = match_trajectory(**given, steps=steps, gradient="adjoint")
    assert_close(found, match_trajectory(**given, steps=steps, gradient="unrolled"))


def test_the_loss_alone_is_the_same_without_the_way_back():
    given, steps = problem(), chunked_steps(4)
    assert torch.equal(
        match_loss(**given, steps=steps), match_trajectory(**given, steps=steps, gradient="adjoint").loss
    )
    assert all(tensor.grad is None for tensor in given.values() if isinstance(tensor, torch.Tensor))


def test_one_step_makes_all_three_equal():
    found = [match_trajectory(**problem(), steps=chunked_steps(1), gradient=g) for g in GRADIENTS]
    assert_close(found[0], found[2])
    assert_close(found[1], found[2])


def test_several_steps_do_not():
    given, steps = problem(), all_steps(5)
    tesla, exact = (match_trajectory(**given, steps=steps, gradient=g) for g in ("tesla", "adjoint"))
    cosine = F.cosine_similarity(tesla.images.flatten(), exact.images.flatten(), dim=0)
    assert 0.5 < cosine < 0.9999 and abs(tesla.alpha / exact.alpha - 1) > 0.001


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
def test_gradient_equals_central_differences(gradient):
    given, steps, h = problem(), chunked_steps(4), 1e-6
    found = match_trajectory(**given, steps=steps, gradient=gradient)

    def loss(images, alpha):
        return match_trajectory(**given | {"images": images, "alpha": alpha}, steps=steps, gradient="tesla").loss

    way = draw(*IMAGES.shape, key="way")
    across = (loss(IMAGES + h * way, ALPHA) - loss(IMAGES - h * way, ALPHA)) / (2 * h)
    assert float(across) == pytest.approx(float((found.images * way).sum()), rel=1e-5)
    along = (loss(IMAGES, ALPHA + h) - loss(IMAGES, ALPHA - h)) / (2 * h)
    assert float(along) == pytest.approx(float(found.alpha), rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_student_that_stands_still_has_loss_one(gradient):
    given = problem() | {"alpha": torch.zeros((), dtype=torch.float64)}
    found = match_trajectory(**given, steps=all_steps(3), gradient=gradient)
    assert found.loss == 1 and not found.images.any() and found.alpha.isfinite() and found.alpha != 0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_student_that_hits_the_target_has_loss_zero(gradient):
    """The target is where the network itself goes from the same start, by loss.backward() and plain steps."""
    given, steps = problem(), chunked_steps(4)
    net = given["net"].net.double()
    for step in steps:
        net.zero_grad()
        F.cross_entropy(net(apply_dsa(IMAGES[step.index], step.dsa)), LABELS[step.index]).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= ALPHA * parameter.grad
    found = match_trajectory(**given | {"target": given["net"].parameters()}, steps=steps, gradient=gradient)
    assert found.loss < 1e-24 and found.images.abs().max() < 1e-9 and found.alpha.abs() < 1e-9


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_image_gets_the_gradients_of_all_its_steps_and_no_others(gradient):
    given = problem()
    steps = [Step(torch.tensor(index), Dsa(np.zeros((1, COLUMNS)), ())) for index in ([3, 1], [1], [1, 0])]
    found = match_trajectory(**given, steps=steps, gradient=gradient).images
    assert [bool(image.any()) for image in found] == [True, True, False, True, False]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_arguments_are_left_alone(gradient):
    given, steps = problem(), all_steps(2)
    values = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    for name in ("start", "target", "images", "alpha"):
        given[name].requires_grad_()
    before = {name: value.detach().clone() for name, value in values.items()}
    own = given["net"].parameters()
    found = match_trajectory(**given, steps=steps, gradient=gradient)
    for name, value in values.items():
        assert value.grad is None and torch.equal(value, before[name])
    assert torch.equal(own, given["net"].parameters()) and all(p.grad is None for p in given["net"].net.parameters())
    assert not any(value.requires_grad for value in (found.loss, found.images, found.alpha))
    for name in ("start", "target", "images", "alpha"):
        given[name].requires_grad_(False)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_float32(gradient):
    given, steps = problem(), chunked_steps(5)
    single = given | {name: given[name].float() for name in ("start", "target", "images", "alpha")}
    found, exact = (match_trajectory(**g, steps=steps, gradient=gradient) for g in (single, given))
    for name in ("loss", "images", "alpha"):
        a, b = getattr(found, name), getattr(exact, name)
        assert a.dtype == torch.float32 and a.shape == b.shape and (a - b).norm() < 1e-3 * b.norm()


def test_another_gradient_is_refused():
    with pytest.raises(ValueError, match="'exact': expected one of adjoint, tesla, unrolled"):
        match_trajectory(**problem(), steps=all_steps(1), gradient="exact")


class Kept:
    """A tensor saved for backward; counts the bytes of all that are alive."""

    alive = peak = 0

    def __init__(self, tensor):
        self.tensor, self.bytes = tensor, tensor.nbytes
        Kept.alive += self.bytes
        Kept.peak = max(Kept.peak, Kept.alive)

    def __del__(self):
        Kept.alive -= self.bytes


def peak_of(gradient: str, steps: int) -> int:
    Kept.alive = Kept.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        match_trajectory(**problem(), steps=all_steps(1) * steps, gradient=gradient)
    assert Kept.alive == 0
    return Kept.peak


def test_memory_of_the_graph_does_not_grow_with_the_steps():
    for gradient in ("adjoint", "tesla"):
        assert peak_of(gradient, 6) == peak_of(gradient, 1) > 0
    assert peak_of("unrolled", 6) > 5.5 * peak_of("unrolled", 1)


def test_steps_are_chunks_of_fresh_permutations():
    steps = draw_steps(7, "run", count=5, batch=2, steps=7)
    sizes = [len(step.index) for step in steps]
    assert sizes == [2, 2, 1, 2, 2, 1, 2] and all(step.index.dtype == torch.int64 for step in steps)
    first, second = (torch.cat([step.index for step in part]).tolist() for part in (steps[:3], steps[3:6]))
    assert sorted(first) == sorted(second) == list(range(5)) and first != second
    assert [len(step.dsa.uniform) for step in steps] == sizes
    assert not np.array_equal(steps[0].dsa.uniform, steps[1].dsa.uniform)
    assert all(len(step.dsa.groups) == 1 for step in steps)


@pytest.mark.parametrize("batch", [None, 5, 9])
def test_a_batch_of_all_images(batch):
    steps = draw_steps("run", count=5, batch=batch, steps=60)
    assert all(step.index.tolist() == list(range(5)) and step.dsa.uniform.shape == (5, COLUMNS) for step in steps)
    assert {step.dsa.groups[0] for step in steps} == set(GROUPS)


def test_steps_depend_on_their_key_only():
    def flat(*key, steps=4):
        drawn = draw_steps(*key, count=6, batch=4, steps=steps)
        return [(step.index.tolist(), step.dsa.uniform.tolist(), step.dsa.groups) for step in drawn]

    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert flat(3, "it", 8) == flat(3, "it", 8) == flat(3, "it", 8, steps=9)[:4]
    assert all(a != b for a, b in zip(flat(3, "it", 8), flat(3, "it", 9)))
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
