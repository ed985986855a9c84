"""What is matched in an iteration: class by class (DM, DC), or along expert trajectories of a group of classes (MTT).

Every draw is keyed by iteration, and by class where it belongs to one; networks by iteration alone, so that all units
of a run meet the same sequence of networks, and a class's gradient does not depend on the classes beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raydd.augment.dsa import draw_dsa
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.matching import dc_loss, dm_to, real_mean
from raydd.distill.ld3m.pack import Pack
from raydd.keyed import hash64, numpy_rng
from raydd.models.registry import build_model

HELDOUT = "heldout"


@dataclass(frozen=True)
class Normalize:
    """Pixels in [0, 1] as networks see them; mean and std are those of the real images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


class Objective(Protocol):
    """Loss and gradient of an iteration, and what it carries from one to the next."""

    def __call__(self, iteration: int, synthetic: Tensor) -> tuple[float, Tensor]:
        """Loss and its gradient like synthetic, normalized images fp32 [N,3,S,S]."""
        ...

    def heldout(self, synthetic: Tensor) -> float | None:
        """Mean loss on draws that no iteration makes; None where none is asked for."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What the next iteration needs of the ones before it, by name."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state, other names in it ignored; from one without its names: go back to the start."""
        ...


class ClassMatching:
    """DM (arXiv 2110.04181) or DC (arXiv 2006.05929) on fresh ConvNets: a sum over classes, one backward for each.

    reals: per class uint8 [m,3,S,S] at the matcher's size.
    """

    def __init__(
        self, pack: Pack, reals: Sequence[Tensor], arch: str, config: Ld3mConfig, normalize: Normalize, device: str
    ):
        self.pack, self.reals, self.arch, self.config = pack, reals, arch, config
        self.normalize, self.device, self.size = normalize, device, reals[0].shape[-1]
        self._means: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, iteration: int, synthetic: Tensor) -> tuple[float, Tensor]:
        draw = iteration if self.config.pool is None else iteration % self.config.pool
        net, total, gradients = self._net("net", draw), 0.0, []
        for k, part in enumerate(synthetic.split(self.pack.ipc)):
            part = part.detach().requires_grad_()
            loss = self._loss(net, k, part, ("iteration", draw))
            gradients.append(torch.autograd.grad(loss, part)[0])
            total += float(loss.detach())
        return total, torch.cat(gradients)

    def heldout(self, synthetic: Tensor) -> float | None:
        if not self.config.heldout:
            return None
        total = 0.0
        for triple in range(self.config.heldout):
            net = self._net(HELDOUT, triple)
            for k, part in enumerate(synthetic.split(self.pack.ipc)):
                # DC differentiates inside, by the network's parameters.
                total += float(self._loss(net, k, part.detach(), (HELDOUT, triple)).detach())
        return total / self.config.heldout

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass

    def _net(self, *key: object) -> nn.Module:
        net = build_model(
            self.arch,
            num_classes=self.pack.num_classes,
            image_size=self.size,
            norm="instance",
            seed=hash64(self.pack.seed, *key),
        )
        # Dropout would draw from the global stream.
        return net.eval().to(self.device)

    def _loss(self, net: nn.Module, k: int, synthetic: Tensor, key: tuple[object, ...]) -> Tensor:
        dsa = draw_dsa(numpy_rng(self.pack.seed, "dsa", self.pack.names[k], *key))
        if self.config.loss == "dc":
            label, distance = self.pack.labels[k], self.config.distance
            return dc_loss(net, self._real(k, key), synthetic, label, dsa, distance=distance)
        # The real side of held-out draws is the same at every evaluation, that of a pool at every round.
        mean = self._means.get((k, *key))
        if mean is None:
            mean = real_mean(net, self._real(k, key), dsa)
            if key[0] == HELDOUT or self.config.pool is not None:
                self._means[k, *key] = mean
        return dm_to(mean, net, synthetic, dsa)

    def _real(self, k: int, key: tuple[object, ...]) -> Tensor:
        """A batch of one class without replacement, all of it where there are fewer; normalized."""
        images = self.reals[k]
        order = numpy_rng(self.pack.seed, "real", self.pack.names[k], *key).permutation(len(images))
        chosen = torch.from_numpy(np.sort(order[: self.config.real_batch]))
        return self.normalize(images[chosen].to(self.device).float() / 255)
