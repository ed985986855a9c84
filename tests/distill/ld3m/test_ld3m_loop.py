"""Chunks, passes and checkpoints leave the gradient of one plain graph; steps are those of torch's optimizers; a run
goes on from any of its states with the same bits; and a class does not see the classes beside it (ld3m.md, section 11).
"""

import dataclasses
import itertools
import math

import pytest
import torch
from small_priors import chain_by_hand, dit_prior, draw, unet_prior

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PixelGenerator, PriorGenerator
from raydd.distill.ld3m.loop import Descent, Rates, State
from raydd.distill.ld3m.objective import ClassMatching, Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.keyed import torch_rng

NORMALIZE = Normalize((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
NAMES = ("ant", "bee", "cat")
PACK = Pack(NAMES, (0, 1, 2), num_classes=3, ipc=2, seed=1)
RATES = Rates(0.3, 0.2)


class Coupled:
    """A loss in which every number of every image meets the others, in the images' own precision."""

    def __init__(self, spoil=None):
        self.spoil, self.asked = spoil, 0

    def loss(self, iteration, synthetic):
        target = draw(*synthetic.shape, key=iteration)
        return (synthetic - target).square().sum() / 100 + (synthetic * target).sum().square() / 1000

    def __call__(self, iteration, synthetic):
        assert not synthetic.requires_grad
        synthetic = synthetic.clone().requires_grad_()
        loss = self.loss(iteration, synthetic)
        (toward,) = torch.autograd.grad(loss, synthetic)
        loss = float(loss.detach())
        return self.spoil(iteration, loss, toward) if self.spoil else (loss, toward)

    def heldout(self, synthetic):
        self.asked += 1
        return float(self.loss(-1, synthetic))

    def state(self):
        return {}

    def restore(self, state):
        pass


def start(prior) -> tuple[torch.Tensor, torch.Tensor]:
    c = prior.conditions(PACK.each(PACK.labels)).double()
    return draw(len(PACK), *prior.latent_shape), c + 0.1 * draw(*c.shape, key=1)


def coupled(prior, keep_steps: int = 0, objective=None, **switches) -> Descent:
    config = Ld3mConfig(**{"steps": 3, "guidance": 2.0, "iterations": 5} | switches)
    generator = PriorGenerator(prior, config, prior.image_size, keep_steps)
    return Descent(generator, objective or Coupled(), NORMALIZE, PACK, config)


def by_hand(prior, z, c, eps, **switches) -> torch.Tensor:
    """Normalized images of one graph without checkpoints, chunks or passes."""
    options = {"steps": 3, "guidance": 2.0, "anchor": "x0", "weights": "to_zero"} | switches
    images = prior.paint(chain_by_hand(prior, z, c, eps.double(), **options))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (NORMALIZE.mean, NORMALIZE.std))
    return ((images / 2 + 0.5).clamp(0, 1) - mean) / std


def close(found, expected) -> bool:
    return bool((found - expected).norm() <= 1e-12 * expected.norm())


@pytest.mark.parametrize("make_prior", [unet_prior, dit_prior])
@pytest.mark.parametrize(("anchor", "weights"), [("x0", "to_zero"), ("mean", "t_over_T")])
def test_chunks_and_passes_leave_the_gradient_of_one_graph(make_prior, anchor, weights):
    prior = make_prior()
    z, c = (value.requires_grad_() for value in start(prior))
    eps = PACK.noise(prior.latent_shape, "eps", 4)
    loss = Coupled().loss(4, by_hand(prior, z, c, eps, anchor=anchor, weights=weights))
    expected = torch.autograd.grad(loss, (z, c))
    assert all(value.any() for value in expected)
    variants = [("one", 6, 3), ("one", 6, 0), ("one", 4, 1), ("one", 1, 2), ("two", 4, 0), ("two", 6, 3)]
    for graph, chunk, keep in variants:
        descent = coupled(prior, keep, graph=graph, chunk=chunk, anchor=anchor)
        found, gradients = descent.gradients(z, c, 4)
        assert found == pytest.approx(loss.item(), rel=1e-12)
        assert all(close(a, b) for a, b in zip(gradients, expected)), (graph, chunk, keep)
    assert z.grad is None and c.grad is None


def test_both_graphs_give_equal_bits():
    """In single precision, where the order of operations shows; also kept activations and another decoding chunk."""
    prior = dit_prior(dtype=torch.float32)
    z, c = (value.float() for value in start(prior))
    variants = [(0, {}), (2, {}), (0, {"graph": "two"}), (3, {"graph": "two"}), (0, {"decode_chunk": 2})]
    found = [coupled(prior, keep, chunk=4, **changes).gradients(z, c, 0) for keep, changes in variants]
    for loss, gradients in found[1:]:
        assert loss == found[0][0] and all(torch.equal(a, b) for a, b in zip(gradients, found[0][1]))


@pytest.mark.parametrize(("graph", "keep", "per_chunk"), [("one", 0, 6), ("two", 0, 9), ("one", 3, 3), ("two", 2, 7)])
def test_calls_of_the_denoiser_per_iteration(graph, keep, per_chunk):
    """T steps: 2T per chunk with one graph, 3T with two passes; kept steps are not computed again."""
    prior, calls, recorded = unet_prior(), [], []
    forward = prior.net.forward

    def count(x, *args, **options):
        calls.append(len(x))
        recorded.append(torch.is_grad_enabled())
        return forward(x, *args, **options)

    prior.net.forward = count
    coupled(prior, keep, graph=graph, chunk=4).gradients(*start(prior), 0)
    # Guidance puts both halves into one call.
    assert calls.count(8) == calls.count(4) == per_chunk and len(calls) == 2 * per_chunk
    # The first of two passes keeps nothing.
    assert recorded == [graph == "one"] * 6 + [True] * (2 * per_chunk - 6)


@pytest.mark.parametrize("learn", ["latent", "condition"])
def test_what_is_not_learned_gets_no_gradient_and_stays(learn):
    prior = unet_prior()
    (z, c), full = start(prior), coupled(unet_prior())
    descent = coupled(prior, learn=learn, iterations=2)
    _, both = full.gradients(z, c, 0)
    _, one = descent.gradients(z, c, 0)
    kept = 0 if learn == "latent" else 1
    assert torch.equal(one[kept], both[kept]) and one[1 - kept] is None
    end = descent.run(State(0, z, c), RATES)
    moved = [not torch.equal(a, b) for a, b in zip((end.z, end.c), (z, c))]
    assert moved == [learn == "latent", learn == "condition"]


def noises(descent: Descent) -> list[torch.Tensor]:
    """Noise of every call of the generator, in the order of the chunks."""
    seen, pixels = [], descent.generator.pixels
    descent.generator.pixels = lambda z, c, noise: seen.append(noise) or pixels(z, c, noise)
    z, c = start(descent.generator.prior)
    descent.run(State(0, z, c), RATES)
    return seen


@pytest.mark.parametrize("noise", ["iteration", "fixed", "pass"])
def test_noise(noise):
    """One draw serves both passes, unless the release is followed; a fixed one is that of the export."""
    seen = noises(coupled(unet_prior(), noise=noise, graph="two", iterations=2, heldout=0))
    assert len(seen) == 4 and seen[0].dtype == torch.float64
    own = {(0, 0): "eps", (1, 0): "eps", (0, 1): "eps", (1, 1): "eps"}
    if noise == "pass":
        own |= {(0, 1): "eps-second", (1, 1): "eps-second"}
    for drawn, (iteration, second) in zip(seen, ((0, 0), (0, 1), (1, 0), (1, 1))):
        key = ("export",) if noise == "fixed" else (own[iteration, second], iteration)
        assert torch.equal(drawn, PACK.noise((3, 8, 8), *key).double())


def test_the_released_way_pulls_the_gradient_back_through_another_image():
    prior = unet_prior()
    z, c = (value.requires_grad_() for value in start(prior))
    first, second = (by_hand(prior, z, c, PACK.noise((3, 8, 8), name, 0)) for name in ("eps", "eps-second"))
    _, toward = Coupled()(0, first.detach())
    expected = torch.autograd.grad(second, (z, c), toward)
    _, found = coupled(prior, noise="pass", graph="two", chunk=4).gradients(z, c, 0)
    assert all(close(a, b) for a, b in zip(found, expected))


def test_exported_images_are_those_of_the_exports_noise():
    prior = dit_prior()
    z, c = start(prior)
    found = coupled(prior, chunk=4).images(z, c)
    eps, std = PACK.noise(prior.latent_shape, "export"), torch.tensor(NORMALIZE.std, dtype=torch.float64)
    expected = by_hand(prior, z, c, eps) * std[:, None, None] + torch.tensor(NORMALIZE.mean)[:, None, None]
    assert found.dtype == torch.uint8 and found.shape == (6, 3, 16, 16)
    assert (found - 255 * expected).abs().max() < 0.5 + 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_are_those_of_torch(optimizer):
    prior = unet_prior()
    descent = coupled(prior, optimizer=optimizer, momentum=0.7)
    z, c = start(prior)
    end = descent.run(State(0, z, c), RATES)
    z, c = (value.clone().requires_grad_() for value in (z, c))
    groups = [{"params": [z], "lr": RATES.latent}, {"params": [c], "lr": RATES.cond}]
    torchs = torch.optim.SGD(groups, momentum=0.7) if optimizer == "sgd" else torch.optim.Adam(groups)
    losses = []
    for iteration in range(5):
        loss, (z.grad, c.grad) = descent.gradients(z, c, iteration)
        losses.append(loss)
        torchs.step()
    assert close(end.z, z.detach()) and close(end.c, c.detach()) and end.iteration == 5
    assert end.losses == pytest.approx(losses, rel=1e-10) and len(set(losses)) == 5


@pytest.mark.parametrize(
    ("iterations", "at"),
    [(0, [0]), (3, [0, 1, 2, 3]), (20, list(range(0, 21, 2))), (25, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25])],
)
def test_heldout_losses_are_taken_at_tenths_of_the_iterations(iterations, at):
    config = Ld3mConfig(generator="pixels", steps=0, iterations=iterations)
    objective = Coupled()
    descent = Descent(PixelGenerator(2), objective, NORMALIZE, PACK, config)
    end = descent.run(State(0, draw(6, 3, 2, 2), None), Rates(0.01, 0.0))
    assert [iteration for iteration, _ in end.heldout] == at and objective.asked == len(at)
    shown = NORMALIZE(((end.z + 1) / 2).clamp(0, 1))
    assert end.heldout[-1][1] == pytest.approx(float(objective.loss(-1, shown)))


def test_pixels_out_of_range_are_cut_off_where_they_are_exported():
    config = Ld3mConfig(generator="pixels", steps=0, clamp=False)
    descent = Descent(PixelGenerator(2, clamp=False), Coupled(), NORMALIZE, PACK, config)
    z = torch.full((6, 3, 2, 2), 1.5)
    z[3:] = -1.5
    images = descent.images(z, None)
    assert (images[:3] == 255).all() and (images[3:] == 0).all()


def test_no_heldout_losses():
    objective = Coupled()
    config = Ld3mConfig(generator="pixels", steps=0, iterations=3, heldout=0)
    end = Descent(PixelGenerator(2), objective, NORMALIZE, PACK, config).run(
        State(0, draw(6, 3, 2, 2), None), Rates(0.01, 0.0)
    )
    assert end.heldout == () and objective.asked == 0


@pytest.mark.parametrize(("what", "loss", "toward"), [("loss", math.nan, 1.0), ("gradient", 1.0, math.inf)])
def test_numbers_that_are_not_finite_stop_after_the_last_good_state(what, loss, toward):
    def spoil(iteration, value, gradient):
        return (value * loss, gradient * toward) if iteration == 2 else (value, gradient)

    prior, states = unet_prior(), []
    with pytest.raises(FloatingPointError, match=rf"class 'ant\+2', iteration 2: the {what} is not finite; .*--lr-l"):
        coupled(prior, objective=Coupled(spoil)).run(State(0, *start(prior)), RATES, states.append)
    assert [state.iteration for state in states] == [1, 2]
    assert states[-1].z.isfinite().all() and len(states[-1].losses) == 2


def reals(name: str) -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch_rng("reals", name))


def matching(names: tuple[str, ...], prior, ipc: int = 2, keep_steps: int = 0, **switches) -> tuple[Descent, State]:
    """DM or DC of some of three classes, on a narrow real objective."""
    config = Ld3mConfig(**{"steps": 2, "iterations": 6, "real_batch": 4, "heldout": 1, "chunk": 4} | switches)
    pack = Pack(names, tuple(NAMES.index(name) for name in names), num_classes=3, ipc=ipc, seed=1)
    objective = ClassMatching(pack, [reals(name) for name in names], "convnet1", config, NORMALIZE, "cpu")
    c = prior.conditions(pack.each(pack.labels))
    z = torch.cat([prior.encode(reals(name)[:ipc]) for name in names])
    return Descent(PriorGenerator(prior, config, 8, keep_steps), objective, NORMALIZE, pack, config), State(0, z, c)


def equal(a: State, b: State) -> bool:
    tensors = [(a.z, b.z), (a.c, b.c), *((a.memory[name], b.memory[name]) for name in a.memory)]
    same = a.memory.keys() == b.memory.keys() and all(torch.equal(*pair) for pair in tensors)
    return same and (a.iteration, a.losses, a.heldout) == (b.iteration, b.losses, b.heldout)


@pytest.mark.parametrize(("loss", "optimizer"), [("dm", "sgd"), ("dc", "sgd"), ("dm", "adam")])
def test_a_run_goes_on_from_any_of_its_states(loss, optimizer):
    prior, states = unet_prior(dtype=torch.float32), []
    switches = {"loss": loss, "optimizer": optimizer}
    descent, state = matching(NAMES[:2], prior, **switches)
    rates = Rates(0.5, 0.5) if optimizer == "sgd" else Rates(0.01, 0.01)
    end = descent.run(state, rates, states.append)
    assert [state.iteration for state in states] == [1, 2, 3, 4, 5, 6] and equal(states[-1], end)
    assert len(end.losses) == 6 and len(end.heldout) == 7 and not torch.equal(end.z, state.z)
    for at in (0, 3):
        again, _ = matching(NAMES[:2], unet_prior(dtype=torch.float32), **switches)
        assert equal(again.run(states[at], rates), end)
    assert again.run(end, rates) is end


@pytest.mark.parametrize("loss", ["dm", "dc"])
def test_a_class_does_not_see_the_classes_beside_it(loss):
    """Equal bits where chunks are made alike; else as close as another shape of the batch lets them be."""
    prior = unet_prior(dtype=torch.float32)
    switches = {"loss": loss, "iterations": 20, "guidance": 1.0, "heldout": 0, "keep_steps": 2}
    rates, ends = Rates(0.02, 0.02) if loss == "dc" else Rates(0.5, 0.5), []
    for names, chunk in ((NAMES[1:2], 2), (NAMES, 2), (NAMES, 6)):
        descent, state = matching(names, prior, chunk=chunk, **switches)
        ends.append(descent.run(state, rates))
    alone, alike, packed = ends
    before, rows = state.z[2:4], slice(2, 4)
    assert torch.equal(alone.z, alike.z[rows]) and torch.equal(alone.c, alike.c[rows])
    for own, other in ((alone.z, packed.z[rows]), (alone.c, packed.c[rows])):
        assert (own - other).norm() <= 1e-5 * own.norm()
    assert (alone.z - before).norm() > 0.01 * before.norm() and not torch.equal(alone.c, state.c[rows])


def test_chunks_may_cut_a_class_in_two():
    """Its loss is taken over all of its images all the same."""
    prior, ends = unet_prior(dtype=torch.float32), []
    for chunk in (1, 3, 6):
        descent, state = matching(NAMES, prior, chunk=chunk, iterations=3, heldout=0, keep_steps=2)
        ends.append(descent.run(state, Rates(0.5, 0.5)))
    for a, b in itertools.pairwise(ends):
        assert (a.z - b.z).norm() <= 1e-5 * a.z.norm() and (a.c - b.c).norm() <= 1e-5 * a.c.norm()


def test_states_are_values():
    """A step leaves the state before it as it was."""
    prior = unet_prior(dtype=torch.float32)
    descent, first = matching(NAMES[:1], prior, iterations=3)
    states = []
    descent.run(first, Rates(0.5, 0.5), lambda s: states.append((s, s.z.clone(), s.memory["z"].clone())))
    for state, z, velocity in states:
        assert torch.equal(state.z, z) and torch.equal(state.memory["z"], velocity)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.iteration = 3
