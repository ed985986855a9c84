"""MTT over a pack: what is drawn, the student's own rate against torch's SGD, and going on from a state."""

import pytest
import torch
from small_priors import draw

from raydd.distill.ld3m.along import LEAST_RATE, TrajectoryMatching
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import PixelGenerator
from raydd.distill.ld3m.loop import Descent, Rates, State
from raydd.distill.ld3m.objective import Normalize
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.rates import calibrate
from raydd.distill.ld3m.trajectory import draw_steps, match_trajectory
from raydd.keyed import numpy_rng, torch_rng
from raydd.models.convnet import ConvNet
from raydd.models.flat import FlatNet

PACK = Pack(("ant", "bee"), (2, 0), num_classes=3, ipc=2, seed=1)
SYNTHETIC = draw(4, 3, 8, 8).float()
EXPERTS = 3


def flat() -> FlatNet:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return FlatNet(ConvNet(1, 3, 8, width=4, norm="instance"))


def snapshots(expert: int):
    """An expert that walks straight, far enough for a loss near 1."""
    net = flat()
    return lambda epoch: net.parameters() + 0.05 * (expert + epoch) * torch.randn(len(net), generator=torch_rng(expert))


def make(load=snapshots, pack: Pack = PACK, **switches) -> TrajectoryMatching:
    options = {"loss": "mtt", "experts": "x", "student_steps": 3, "max_start": 2, "expert_epochs": 2, "heldout": 3}
    return TrajectoryMatching(pack, flat(), load, EXPERTS, Ld3mConfig(**options | switches), "cpu")


def by_hand(alpha: torch.Tensor, *key: object, batch: int | None = None, gradient: str = "adjoint"):
    key = (1, "mtt", "ant", "bee", *key)
    expert, epoch = numpy_rng(*key, "expert").random(2)
    expert, start = snapshots(int(3 * expert)), int(2 * epoch)
    steps = draw_steps(*key, count=4, batch=batch, steps=3)
    labels = torch.tensor([2, 2, 0, 0])
    return match_trajectory(flat(), expert(start), expert(start + 2), SYNTHETIC, labels, alpha, steps, gradient)


@pytest.mark.parametrize(("batch", "gradient"), [(None, "adjoint"), (3, "tesla"), (None, "unrolled")])
def test_an_iteration_is_a_match_drawn_by_its_key(batch, gradient):
    objective = make(student_batch=batch, mtt_gradient=gradient)
    loss, toward = objective(5, SYNTHETIC)
    expected = by_hand(torch.tensor(0.01), "iteration", 5, batch=batch, gradient=gradient)
    assert loss == float(expected.loss) and torch.equal(toward, expected.images) and toward.any()


def test_every_expert_and_start_is_drawn():
    seen = []

    def load(expert):
        own = snapshots(expert)
        return lambda epoch: seen.append((expert, epoch)) or own(epoch)

    objective = make(load, student_steps=1, max_start=4)
    for iteration in range(80):
        objective(iteration, SYNTHETIC)
    pairs = list(zip(seen[::2], seen[1::2]))
    assert len(pairs) == 80 and all(a[0] == b[0] and b[1] == a[1] + 2 for a, b in pairs)
    assert {a for a, _ in pairs} == {(expert, start) for expert in range(EXPERTS) for start in range(4)}


def test_experts_are_loaded_once():
    loaded = []
    objective = make(lambda expert: loaded.append(expert) or snapshots(expert), student_steps=1)
    for iteration in range(12):
        objective(iteration, SYNTHETIC)
    assert sorted(loaded) == [0, 1, 2]


def test_draws_depend_on_iteration_seed_and_group():
    other = Pack(("ant", "cow"), PACK.labels, PACK.num_classes, PACK.ipc, PACK.seed)
    seeded = Pack(PACK.names, PACK.labels, PACK.num_classes, PACK.ipc, seed=2)
    losses = [make()(0, SYNTHETIC)[0], make()(1, SYNTHETIC)[0]]
    losses += [make(pack=pack)(0, SYNTHETIC)[0] for pack in (other, seeded)]
    assert len(set(losses)) == 4 and make()(0, SYNTHETIC)[0] == losses[0]


def test_the_students_rate_is_learned_as_torchs_sgd_would():
    objective = make(student_lr_lr=1e-3, momentum=0.5)
    alpha = torch.tensor(0.01, requires_grad=True)
    torchs = torch.optim.SGD([alpha], lr=1e-3, momentum=0.5)
    for iteration in range(4):
        objective(iteration, SYNTHETIC)
        alpha.grad = by_hand(alpha.detach(), "iteration", iteration).alpha
        torchs.step()
        assert float(objective.alpha) == pytest.approx(float(alpha.detach()), rel=1e-6)
    assert abs(float(alpha.detach()) - 0.01) > 1e-6


def test_the_students_rate_stays_above_zero():
    objective = make(student_lr_lr=1e6)
    assert by_hand(objective.alpha, "iteration", 0).alpha > 0
    objective(0, SYNTHETIC)
    assert float(objective.alpha) == pytest.approx(LEAST_RATE)


def test_heldout_is_a_mean_over_draws_of_its_own_and_moves_nothing():
    objective = make()
    objective(0, SYNTHETIC)
    before = objective.state()
    found = objective.heldout(SYNTHETIC)
    expected = [float(by_hand(before["alpha"], "heldout", draw).loss) for draw in range(3)]
    assert found == pytest.approx(sum(expected) / 3, rel=1e-6) and len(set(expected)) == 3
    assert all(torch.equal(before[name], value) for name, value in objective.state().items())
    assert make(heldout=0).heldout(SYNTHETIC) is None


def test_it_goes_on_from_a_state():
    whole, first, second = (make(student_lr_lr=1e-3) for _ in range(3))
    for iteration in range(4):
        expected = whole(iteration, SYNTHETIC)
    for iteration in range(2):
        first(iteration, SYNTHETIC)
    second.restore(first.state() | {"z": torch.zeros(1)})
    for iteration in (2, 3):
        found = second(iteration, SYNTHETIC)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert whole.state().keys() == {"alpha", "alpha-velocity"}
    assert all(torch.equal(value, second.state()[name]) for name, value in whole.state().items())
    second.restore({})
    assert float(second.alpha) == pytest.approx(0.01) and second.velocity == 0


def descent(**switches) -> Descent:
    switches = {"student_lr_lr": 1e-3, "iterations": 5, "generator": "pixels", "steps": 0} | switches
    objective = make(**switches)
    return Descent(PixelGenerator(8), objective, Normalize((0.5,) * 3, (0.25,) * 3), PACK, objective.config)


def test_a_run_goes_on_from_any_of_its_states():
    states, z = [], (0.5 * SYNTHETIC).clamp(-0.9, 0.9)
    end = descent().run(State(0, z, None), Rates(0.5, 0.0), states.append)
    again = descent().run(states[2], Rates(0.5, 0.0))
    assert torch.equal(again.z, end.z) and (again.losses, again.heldout) == (end.losses, end.heldout)
    assert all(torch.equal(value, again.memory[name]) for name, value in end.memory.items())
    assert {"z", "alpha", "alpha-velocity"} == end.memory.keys() and end.memory["alpha"] != states[2].memory["alpha"]


def test_settling_the_rates_moves_nothing():
    """The student's rate too is where it was: the run that follows is the run of another, fresh objective."""
    one, z = descent(), (0.5 * SYNTHETIC).clamp(-0.9, 0.9)
    rates = calibrate(one, z, None)
    assert rates.latent > 0 and rates.cond == 0 and float(one.objective.alpha) == pytest.approx(0.01)
    assert torch.equal(one.run(State(0, z, None), rates).z, descent().run(State(0, z, None), rates).z)
