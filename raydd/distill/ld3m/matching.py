"""Distribution and gradient matching, the losses DM (arXiv 2110.04181) and DC (2006.05929) of LD3M (spec section 4).

    DM:  L = || mean_b psi(Aug(X)) - mean_n psi(Aug(S)) ||^2,   psi: what the classifier reads
    DC:  L = D(g(Aug(X)), g(Aug(S))),   g: gradient of the mean cross-entropy to the matcher's parameters

Each loss is one class's; the loss of a step is their sum, so a class's gradient does not depend on the others, and one
class's graph can be freed before the next is built. One set of DSA parameters serves both sides (Siamese). Networks are
read, not used: their parameters are replaced by views, so neither loss leaves gradients in them, whether they are
frozen or not, and DM asks for no gradient of a weight.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raydd.augment.dsa import Dsa, apply_dsa
from raydd.models.registry import classifier_layer

Distance = Literal["layers", "mse", "cos"]
EPS = 1e-6


def features(net: nn.Module, images: Tensor) -> Tensor:
    """psi: what the last layer of `net` reads for images [B, 3, S, S], flattened to [B, F]; differentiable in images.

    ConvNet-D: its flattened map, F = width * side^2.
    """
    read: list[Tensor] = []
    _, layer = classifier_layer(net)
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        functional_call(net, {name: value.detach() for name, value in net.named_parameters()}, (images,))
    finally:
        hook.remove()
    return read[-1].flatten(1)


@torch.no_grad()
def real_mean(net: nn.Module, real: Tensor, dsa: Dsa) -> Tensor:
    """Mean features [F] of augmented normalized images [B, 3, S, S], without a graph: the real side of DM.

    Means of several batches, weighted by their sizes, make the mean of all, if `dsa` has one row.
    """
    return features(net, apply_dsa(real, dsa)).mean(0)


def dm_to(mean: Tensor, net: nn.Module, synthetic: Tensor, dsa: Dsa) -> Tensor:
    """DM loss [] of synthetic normalized images [n, 3, S, S] against the real side's mean [F]."""
    return (features(net, apply_dsa(synthetic, dsa)).mean(0) - mean).square().sum()


def dm_loss(net: nn.Module, real: Tensor, synthetic: Tensor, dsa: Dsa) -> Tensor:
    """DM loss [] of one class: real [B, 3, S, S] and synthetic [n, 3, S, S], both normalized, augmented alike."""
    return dm_to(real_mean(net, real, dsa), net, synthetic, dsa)


def dc_loss(
    net: nn.Module,
    real: Tensor,
    synthetic: Tensor,
    label: int,
    dsa: Dsa,
    *,
    distance: Distance = "layers",
    eps: float = EPS,
) -> Tensor:
    """DC loss [] of one class: real [B, 3, S, S] and synthetic [n, 3, S, S], both normalized and of class `label`.

    `layers` sums 1 - cosine over the output rows of all weights with 2 or 4 axes, with `eps` added to the product of
    the norms; equal gradients g then leave sum eps / (|g|^2 + eps). With eps 0 a row where either side's gradient is
    zero has no cosine and is left out. `mse` is the squared distance of all parameters' gradients, `cos` is 1 - one
    cosine over all of them. Differentiable in `synthetic`, once. Raises `ValueError` for another distance.
    """
    if distance not in ("layers", "mse", "cos"):
        raise ValueError(f"distance {distance!r}: expected 'layers', 'mse' or 'cos'")
    parameters = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
    chosen = [value for value in parameters.values() if distance != "layers" or value.dim() in (2, 4)]

    def gradients(images: Tensor, graph: bool) -> tuple[Tensor, ...]:
        logits = functional_call(net, parameters, (apply_dsa(images, dsa),))
        loss = F.cross_entropy(logits, torch.full((len(images),), label, device=logits.device))
        return torch.autograd.grad(loss, chosen, create_graph=graph)

    pairs = list(zip(gradients(real, False), gradients(synthetic, True)))
    if distance == "layers":
        return sum(_away(a.flatten(1), b.flatten(1), eps) for a, b in pairs)
    flat_real, flat_synthetic = (torch.cat([g.flatten() for g in side]) for side in zip(*pairs))
    if distance == "mse":
        return (flat_real - flat_synthetic).square().sum()
    return _away(flat_real[None], flat_synthetic[None], eps)


def _away(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Sum over rows of 1 - <a, b> / (|a| |b| + eps), for a and b [R, D]."""
    if eps == 0:
        # Chosen before the norms, whose product would divide by zero in the gradient too.
        alive = a.any(1) & b.any(1)
        a, b = a[alive], b[alive]
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + eps)).sum()
