"""What one forward pass of a teacher says about an image: features, loss, margin, EL2N, last-layer gradient norm.

EL2N is || p - onehot(y) || (arXiv 2107.07075). The gradient of the cross-entropy for the last Linear layer is the outer
product of p - onehot(y) and the layer's input h, so its norm is || p - onehot(y) || sqrt(||h||^2 + 1) in closed form
(the 1 is the bias). It is exact for that layer only and ranks crops differently from the full norm (InfoUtil, section
5): a named variant, not a substitute. The last Linear is found by running the network, not by its attribute name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.errors import UserError


def require_eval(model: nn.Module) -> None:
    """Raise `ValueError` if a batch norm or dropout of `model` is in training mode: images would change each other."""
    for name, module in model.named_modules():
        mixing = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        if mixing and module.training:
            raise ValueError(f"teacher layer {name!r} ({type(module).__name__}) is in training mode; call model.eval()")


@torch.no_grad()
def final_linear(model: nn.Module, x: Tensor) -> nn.Linear:
    """The `nn.Linear` that runs last on x [B, 3, S, S] and makes the logits; `UserError` if there is none."""
    last: list[tuple[nn.Linear, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        last[:] = [(module, out)]

    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(remember) for m in linears]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not last or last[0][1].shape != logits.shape:
        raise UserError(f"teacher {type(model).__name__} does not end in a Linear layer: use another architecture")
    return last[0][0]


class Outputs:
    """Features and cheap scores from one forward of `model` (kept in the caller's mode; eval is required)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._linear: nn.Linear | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Score normalized images x [B, 3, S, S] with labels y int64 [B].

        Returns float32 tensors: features [B, D] (input of the last Linear), logits [B, K], and [B] each: loss
        (cross-entropy), margin (true logit minus the best other), el2n, gradnorm_last. Raises `ValueError` in training
        mode, `UserError` if the network does not end in a Linear layer.
        """
        require_eval(self.model)
        if self._linear is None:
            self._linear = final_linear(self.model, x[:1])
        features, logits = self._forward(x)
        error = logits.softmax(dim=1) - F.one_hot(y, logits.shape[1])
        el2n = error.norm(dim=1)
        bias = 0.0 if self._linear.bias is None else 1.0
        return {
            "features": features,
            "logits": logits,
            "loss": F.cross_entropy(logits, y, reduction="none"),
            "margin": margin(logits, y),
            "el2n": el2n,
            "gradnorm_last": el2n * (features.square().sum(dim=1) + bias).sqrt(),
        }

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        handle = self._linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        return seen[-1].float(), logits.float()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True logit minus the best other: logits [B, K], y int64 [B] -> [B]."""
    target = y[:, None]
    others = logits.scatter(1, target, float("-inf")).amax(dim=1)
    return logits.gather(1, target)[:, 0] - others
