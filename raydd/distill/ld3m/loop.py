"""Gradient descent on latents and conditions through the generator (ld3m.md, section 5).

    S = generate(Z, c)        in chunks, each a graph of its own
    gS = d loss / d S         second order, if any, lives inside the small matcher
    backward of every chunk with its part of gS: one vector-Jacobian product of the prior
    v = momentum v + g,  p -= rate v

The loop stops for its caller after every iteration: what it hands over is all that is needed to go on, with the same
bits. Nothing of a random generator is carried, because every draw is keyed.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import Generator
from raydd.distill.ld3m.objective import Normalize, Objective
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.shares import Shares

EVALUATIONS = 10
BETAS = (0.9, 0.999)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Step sizes of latents and conditions."""

    latent: float
    cond: float


@dataclasses.dataclass(frozen=True)
class State:
    """Between two iterations: the one that comes next, the learnables, the optimizer's memory, and the curves.

    z fp32 [N,Ch,H,W]; c fp32 [N, ...] or None; memory: tensors by name, the objective's own among them; losses: one
    per iteration; heldout: (iteration, loss).
    """

    iteration: int
    z: Tensor
    c: Tensor | None
    memory: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    losses: tuple[float, ...] = ()
    heldout: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Descent:
    """What does not change during an optimization; `shares` are this process's among those that work on it."""

    generator: Generator
    objective: Objective
    normalize: Normalize
    pack: Pack
    config: Ld3mConfig
    shares: Shares = Shares()

    def run(self, state: State, rates: Rates, on_step: Callable[[State], None] | None = None) -> State:
        """Iterate to `config.iterations`; `on_step` sees every new state.

        Raises `FloatingPointError` that names the classes and the iteration where loss or gradients are not finite; the
        state before it was handed to `on_step` and is good.
        """
        self.objective.restore(state.memory)
        state = self._evaluate(state)
        while state.iteration < self.config.iterations:
            loss, gradients = self.gradients(state.z, state.c, state.iteration)
            self._check(loss, gradients, state.iteration)
            state = self._evaluate(self._step(state, loss, gradients, rates))
            if on_step:
                on_step(state)
        return state

    def gradients(self, z: Tensor, c: Tensor | None, iteration: int) -> tuple[float, tuple[Tensor | None, ...]]:
        """Loss of an iteration, and its gradients like z and c; None for what is not learned."""
        learn_z, learn_c = self.config.learns
        z = z.detach().requires_grad_(learn_z)
        c = None if c is None else c.detach().requires_grad_(learn_c)
        first, second = self._noises(iteration)
        two, borders = self.config.graph == "two", self._borders(len(z))
        with torch.set_grad_enabled(not two):
            parts = self._generate(z, c, first)
        images = self.shares.whole({index: part.detach() for index, part in parts.items()}, borders)
        loss, toward = self.objective(iteration, images)
        for index, part in parts.items():
            if two:
                part = self._part(z, c, second, borders[index])
            part.backward(toward[borders[index]])
        gradients = z.grad, None if c is None else c.grad
        for gradient in gradients:
            if gradient is not None:
                self.shares.exchange(gradient, borders)
        return loss, gradients

    def images(self, z: Tensor, c: Tensor | None) -> Tensor:
        """The images as they are exported, uint8 [N,3,size,size] on the CPU: with the keyed noise of exports."""
        with torch.no_grad():
            noise, borders = self._export_noise(), self._borders(len(z))
            mine = self.shares.mine(len(borders))
            pixels = self.shares.whole({i: self._pixels(z, c, noise, borders[i]) for i in mine}, borders)
        return (pixels * 255).round().clamp(0, 255).byte().cpu()

    def _borders(self, count: int) -> list[slice]:
        starts = range(0, count, self.config.chunk)
        return [slice(start, min(start + self.config.chunk, count)) for start in starts]

    def _generate(self, z: Tensor, c: Tensor | None, noise: Tensor) -> dict[int, Tensor]:
        """This process's chunks of images, by their index."""
        borders = self._borders(len(z))
        return {index: self._part(z, c, noise, borders[index]) for index in self.shares.mine(len(borders))}

    def _part(self, z: Tensor, c: Tensor | None, noise: Tensor, rows: slice) -> Tensor:
        return self.normalize(self._pixels(z, c, noise, rows))

    def _pixels(self, z: Tensor, c: Tensor | None, noise: Tensor, rows: slice) -> Tensor:
        return self.generator.pixels(z[rows], None if c is None else c[rows], noise[rows].to(z.device, z.dtype))

    def _noises(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The noise of the first and of the second pass: one draw, unless the release is followed."""
        if self.config.noise == "fixed":
            noise = self._export_noise()
            return noise, noise
        first = self.pack.noise(self.generator.latent_shape, "eps", iteration)
        if self.config.noise == "iteration":
            return first, first
        return first, self.pack.noise(self.generator.latent_shape, "eps-second", iteration)

    def _export_noise(self) -> Tensor:
        return self.pack.noise(self.generator.latent_shape, "export")

    def _step(self, state: State, loss: float, gradients: tuple[Tensor | None, ...], rates: Rates) -> State:
        memory, moved = dict(state.memory), []
        named = zip(("z", "c"), (state.z, state.c), gradients, (rates.latent, rates.cond))
        for name, value, gradient, rate in named:
            if gradient is not None:
                value = value - rate * self._direction(name, gradient, memory, state.iteration)
            moved.append(value)
        memory |= self.objective.state()
        return State(state.iteration + 1, *moved, memory, (*state.losses, loss), state.heldout)

    def _direction(self, name: str, gradient: Tensor, memory: dict[str, Tensor], iteration: int) -> Tensor:
        if self.config.optimizer == "sgd":
            memory[name] = gradient + self.config.momentum * memory.get(name, 0.0)
            return memory[name]
        mean, square = (memory.get(f"{name}-{part}", torch.zeros_like(gradient)) for part in ("mean", "square"))
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
        memory[f"{name}-mean"], memory[f"{name}-square"] = mean, square
        first, second = (1 - beta ** (iteration + 1) for beta in BETAS)
        return mean / first / ((square / second).sqrt() + 1e-8)

    def _evaluate(self, state: State) -> State:
        """With the held-out loss added, at the start and after each tenth of the iterations."""
        at, total = state.iteration, self.config.iterations
        due = at == 0 or at * EVALUATIONS // total > (at - 1) * EVALUATIONS // total
        if not self.config.heldout or not due or (state.heldout and state.heldout[-1][0] == at):
            return state
        with torch.no_grad():
            parts = self._generate(state.z, state.c, self._export_noise())
            synthetic = self.shares.whole(parts, self._borders(len(state.z)))
        value = self.objective.heldout(synthetic)
        return state if value is None else dataclasses.replace(state, heldout=(*state.heldout, (at, value)))

    def _check(self, loss: float, gradients: tuple[Tensor | None, ...], iteration: int) -> None:
        finite = all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
        if math.isfinite(loss) and finite:
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        raise FloatingPointError(
            f"class {self.pack.name!r}, iteration {iteration}: the {what} is not finite; use a lower --lr-latent and "
            "--lr-cond, or --move"
        )
