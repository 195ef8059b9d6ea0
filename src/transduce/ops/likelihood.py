"""The cost of a symbol under a softmax over many: everything that training wants to know in one pass over the
logits."""

from __future__ import annotations

from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from transduce.ops.dispatch import Case, op

_ELEMENTS = 1 << 17
"""Logits that are handled at a time: half a MiB in float32, so that they stay in a core's cache."""


@op
def cross_entropy(
    logits_BUV: Tensor, target_BU: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """cost = -(1 - e) log p(y) - e/V sum_v log p(v), p = softmax(logits), e = ``smoothing`` in [0,1).

    Szegedy et al. 2016 (arXiv 1512.00567, section 7). Logits in half precision are summed in float32.

    Returns the cost (B,U), log p(y) (B,U) without gradient, and the most likely symbol (B,U), the lowest id among
    equals. ``target_BU``: ids below V at every step, padding included.
    """
    wide = logits_BUV.float() if logits_BUV.dtype in (torch.float16, torch.bfloat16) else logits_BUV
    if smoothing == 0.0:
        cost = F.cross_entropy(wide.flatten(0, 1), target_BU.flatten(), reduction="none").view(target_BU.shape)
        return cost, -cost.detach(), wide.argmax(-1)
    scores = wide.log_softmax(-1)
    log_p = scores.gather(-1, target_BU[..., None])[..., 0]
    cost = -(1.0 - smoothing) * log_p - smoothing * scores.mean(-1)
    return cost, log_p.detach(), wide.argmax(-1)


def _in_memory_of_the_host(logits_BUV: Tensor, target_BU: Tensor, *, smoothing: float = 0.0) -> str | None:
    if logits_BUV.device.type != "cpu":
        return "a loop over blocks would launch too many kernels"
    return "a graph cannot hold the loop" if torch.compiler.is_compiling() else None


@cross_entropy.backend("blocks", when=_in_memory_of_the_host)
def cross_entropy_blocks(
    logits_BUV: Tensor, target_BU: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """A few rows at a time, gradient included: where the reference writes seven arrays of the size of the logits, one
    is written, in the precision of the logits."""
    return _Blocks.apply(logits_BUV, target_BU, smoothing, torch.is_grad_enabled() and logits_BUV.requires_grad)


class _Blocks(torch.autograd.Function):
    """The gradient of a cost with respect to its logits is p - (1 - e) [v = y] - e/V, known once p is."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, target: Tensor, smoothing: float, trained: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_symbols = logits.shape[-1]
        flat, ids = logits.reshape(-1, num_symbols), target.reshape(-1, 1)
        wide = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty(flat.shape, dtype=flat.dtype) if trained else None
        cost, log_p = (torch.empty(len(flat), dtype=wide) for _ in range(2))
        mode = torch.empty(len(flat), dtype=torch.long)
        size = max(1, _ELEMENTS // num_symbols)
        for begin in range(0, len(flat), size):
            block = slice(begin, begin + size)
            y = ids[block]
            x = flat[block].to(wide)
            top, best = x.max(-1, keepdim=True)  # the first among equals
            mode[block] = best[:, 0]
            x = x - top
            p = x.exp()
            total = p.sum(-1, keepdim=True)
            log_p[block] = (x.gather(-1, y) - total.log())[:, 0]
            cost[block] = -(1.0 - smoothing) * log_p[block]
            if smoothing > 0.0:
                cost[block] -= smoothing * (x.mean(-1) - total.log()[:, 0])
            if gradient is not None:
                p.mul_(total.reciprocal())
                if smoothing > 0.0:
                    p.sub_(smoothing / num_symbols)
                p.scatter_add_(-1, y, p.new_full((), smoothing - 1.0).expand_as(y))
                gradient[block] = p
        shape = target.shape
        cost, log_p, mode = cost.view(shape), log_p.view(shape), mode.view(shape)
        ctx.mark_non_differentiable(log_p, mode)
        ctx.save_for_backward(gradient)
        return cost, log_p, mode

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *rest: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.reshape(-1, 1).to(gradient.dtype)).view(*grad.shape, -1), None, None, None


@cross_entropy.cases
def cross_entropy_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def case(name: str, batch: int, steps: int, symbols: int, smoothing: float, factor: float = 1.0, **how) -> Case:
        logits = factor * torch.randn(batch, steps, symbols, generator=generator, dtype=torch.float64)
        target = torch.randint(symbols, (batch, steps), generator=generator)
        return Case(name, (logits, target), {"smoothing": smoothing}, grad=(0,), **how)

    yield case("tiny", 2, 2, 3, 0.0, tiny=True)
    yield case("tiny, smoothed", 2, 3, 4, 0.2, tiny=True)
    yield case("one symbol", 2, 3, 1, 0.1)
    yield case("several blocks", 3, 7, 20011, 0.1)
    yield case("several blocks, not smoothed", 3, 7, 20011, 0.0)
    yield case("sharp", 2, 5, 17, 0.1, factor=50.0)
    impossible = case("impossible symbols", 2, 4, 9, 0.0)
    logits, target = impossible.args
    logits[..., 3] = -torch.inf
    target[target == 3] = 4
    yield impossible
