"""Norm of the loss gradient over all parameters, per image: InfoUtil's utility score (arXiv 2601.21296, stage 2).

s_n = || d CE(T(x_n), y_n) / d theta || for a teacher T in eval mode. One forward and one backward of the summed loss
give every layer's input a and output gradient g; `norm_rules` turns them into squared norms, layer by layer, and a, g
are dropped at once. No weight gradient of the batch, no image gradient and no per-sample gradient of the whole network
is ever held. Hooks on tensors, not on modules, so in-place ReLU and in-place residual additions are safe.

The layers work on a copy of the module tree that shares all parameters and buffers; the teacher is not touched, and
changes of its weights in place are seen. Parameters that no layer with a rule owns (class tokens, position tables,
layer scales) are replaced by per-sample copies. Whatever is not covered exactly once (weight sharing, unknown layers,
layers that see another batch) is found after the forward, and the whole network then goes through `torch.func.vmap`,
with a warning; so do networks whose first two norms differ from plain autograd's, compared once on the first call.

In float32 a pre-activation within rounding of zero may fall on the other side of its ReLU than in another order of
summation, which moves that image's norm by about 1e-5; everything else agrees to about 1e-7.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from raydd.score.attention import unpack_attention
from raydd.score.norm_rules import Rule, rule_of, sq
from raydd.score.outputs import require_eval

AGREEMENT = 1e-3
CPU_ROWS = 32


class _Uncovered(Exception):
    """The rules do not cover this network exactly once."""


class _Root(torch.autograd.Function):
    """Cut the graph in front of the first layers: the output requires a gradient, the input never gets one.

    A leaf would not do, because a following in-place ReLU may not write to one.
    """

    @staticmethod
    def forward(ctx, out: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[None, None]:
        return None, None


@dataclass
class _Pass:
    """What one forward and backward of a batch collects."""

    batch: int
    sq: Tensor
    anchor: Tensor
    claimed: set[int] = field(default_factory=set)


class GradNorm:
    """Exact all-parameter gradient norms of `model`.

    max_unfold_bytes: what a layer's rule may take beside activations, and vmap's per-sample gradients in the fallback.
    rows: images per forward and backward (None: 32 on a CPU, where that keeps maps in the caches; the whole batch
    elsewhere). `fallback` is None, or the reason why this network goes through vmap.
    """

    def __init__(self, model: nn.Module, max_unfold_bytes: int = 256 << 20, rows: int | None = None) -> None:
        self.model = model
        self.scratch = max_unfold_bytes
        self.rows = rows
        self.fallback: str | None = None
        self._verified = False
        self._pass: _Pass | None = None
        self.net = copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})
        unpack_attention(self.net)
        self._bare = dict(_bare_parameters(self.net))
        for module in self.net.modules():
            rule = rule_of(module)
            if rule and list(module.parameters(recurse=False)):
                module.register_forward_hook(partial(self._on_forward, rule))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Norms for normalized images x [B, 3, S, S] and labels y int64 [B].

        Returns float32 [B] (float64 for a float64 network). Raises `ValueError` for a network in training mode.
        """
        require_eval(self.model)
        self.net.eval()
        if self.fallback is None:
            try:
                rows = self.rows or (CPU_ROWS if x.device.type == "cpu" else len(x))
                norms = torch.cat([self._hooked(*part) for part in zip(x.split(rows), y.split(rows))])
                self._verify(x, y, norms)
            except _Uncovered as reason:
                self.fallback = str(reason)
                warnings.warn(f"gradient norms go through vmap, several times slower: {reason}", stacklevel=2)
        return norms if self.fallback is None else self._vmapped(x, y)

    def _hooked(self, x: Tensor, y: Tensor) -> Tensor:
        bare = {name: _per_sample(p, len(x)).requires_grad_() for name, p in self._bare.items()}
        kind = torch.promote_types(x.dtype, torch.float32)
        anchor = torch.zeros((), device=x.device, requires_grad=True)
        self._pass = current = _Pass(len(x), torch.zeros(len(x), device=x.device, dtype=kind), anchor)
        try:
            with torch.enable_grad():
                loss = _summed_loss(self._forward(bare, x), y)
                self._check_claims()
                copies = torch.autograd.grad(loss, [anchor, *bare.values()], allow_unused=True)[1:]
        finally:
            self._pass = None
        for g in copies:
            current.sq += 0 if g is None else sq(g).to(kind)
        return current.sq.sqrt()

    def _forward(self, bare: dict[str, Tensor], x: Tensor) -> Tensor:
        try:
            return functional_call(self.net, bare, (x.detach(),))
        except RuntimeError as error:
            if not bare:
                raise
            raise _Uncovered(f"{len(bare)} parameters such as {next(iter(bare))} have no rule") from error

    def _on_forward(self, rule: Rule, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        current = self._pass
        if current is None:
            return None
        self._claim(layer, inputs[0], out)
        if not inputs[0].requires_grad:
            out = _Root.apply(out.detach(), current.anchor)
        held = [inputs[0].detach()]
        version = held[0]._version

        def on_gradient(g: Tensor) -> None:
            a = held.pop()
            if a._version != version:
                raise RuntimeError(f"the input of a {type(layer).__name__} is overwritten: it has no gradient")
            current.sq += rule(layer, a, g, self.scratch).to(current.sq.dtype)

        out.register_hook(on_gradient)
        return out

    def _claim(self, layer: nn.Module, a: Tensor, out: Tensor) -> None:
        name = type(layer).__name__
        if len(a) != self._pass.batch or len(out) != self._pass.batch:
            raise _Uncovered(f"a {name} sees a batch of {len(a)}, not {self._pass.batch}")
        for parameter in layer.parameters(recurse=False):
            if id(parameter) in self._pass.claimed:
                raise _Uncovered(f"a {name} runs twice or shares its weights")
            self._pass.claimed.add(id(parameter))

    def _check_claims(self) -> None:
        for name, parameter in self.net.named_parameters():
            if id(parameter) not in self._pass.claimed and name not in self._bare:
                raise _Uncovered(f"parameter {name} belongs to no layer that ran")

    def _verify(self, x: Tensor, y: Tensor, norms: Tensor) -> None:
        """Compare the first two norms with autograd's once: layouts that mix samples cannot all be told from shapes."""
        if self._verified:
            return
        self._verified = len(x) > 1
        expected = torch.stack([self._alone(x[i : i + 1], y[i : i + 1]) for i in range(min(2, len(x)))])
        if not torch.allclose(norms[:2], expected, rtol=AGREEMENT, atol=AGREEMENT * float(expected.max())):
            raise _Uncovered("the layers mix samples in a way that the rules do not cover")

    @torch.enable_grad()
    def _alone(self, x: Tensor, y: Tensor) -> Tensor:
        parameters = {name: p.detach().requires_grad_() for name, p in self.net.named_parameters()}
        loss = _summed_loss(functional_call(self.net, parameters, (x,)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return sum(g.square().sum() for g in gradients if g is not None).sqrt()

    def _vmapped(self, x: Tensor, y: Tensor) -> Tensor:
        parameters = {name: p.detach() for name, p in self.net.named_parameters()}
        size = sum(p.numel() * p.element_size() for p in parameters.values())

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return _summed_loss(functional_call(self.net, parameters, (image[None],)), label[None])

        def norm(image: Tensor, label: Tensor) -> Tensor:
            gradients = grad(loss)(parameters, image, label)
            return sum(g.square().sum() for g in gradients.values()).sqrt()

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            return vmap(norm, chunk_size=max(1, self.scratch // size))(x, y)


def _summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, reduction="sum")


def _bare_parameters(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters owned by modules without a rule, each a table that broadcasts over the batch."""
    for prefix, module in net.named_modules():
        if rule_of(module) is None:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}" if prefix else name, parameter


def _per_sample(parameter: Tensor, batch: int) -> Tensor:
    shape = parameter.shape[1:] if parameter.ndim and len(parameter) == 1 else parameter.shape
    return parameter.detach().expand(batch, *shape).clone()
