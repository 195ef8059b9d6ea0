"""The linear recurrence with a small matrix in each channel: what a Newton step of a nonlinear recurrence solves."""

from __future__ import annotations

from typing import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Case, on_tensors, op
from .tracing import why_not_kernel, why_traced


def _check(a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
    if a.dim() != 5 or b.dim() != 4 or a.shape != (*b.shape[:2], b.shape[2], *b.shape[2:]):
        raise ValueError(
            f"affine_scan needs a of shape (B,T,K,K,D) and b of shape (B,T,K,D), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if h0 is None:
        return torch.zeros_like(b[:, 0]) if b.shape[1] else b.new_zeros(b.shape[0], *b.shape[2:])
    if h0.shape != (b.shape[0], *b.shape[2:]):
        raise ValueError(f"affine_scan needs h0 of shape {(b.shape[0], *b.shape[2:])}, got {tuple(h0.shape)}")
    return h0


def apply_blocks(a: Tensor, h: Tensor) -> Tensor:
    """The product in each channel: (...,K,K,D) and (...,K,D) -> (...,K,D)."""
    return (a * h.unsqueeze(-3)).sum(-2)


def transpose_blocks(a: Tensor) -> Tensor:
    return a.transpose(-3, -2)


@op
def affine_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """h_t = A_t h_(t-1) + b_t, where each of D channels has K numbers and a matrix of its own.

    Args:
        a: (B,T,K,K,D), ``a[..., i, j, d]`` is the weight of component j before in component i after.
        b: (B,T,K,D).
        h0: (B,K,D), the state before the first step (with ``reverse``: after the last one); None means zero.
        reverse: run from the last step to the first, h_t = A_t h_(t+1) + b_t.

    Returns h (B,T,K,D). A step whose matrix is zero begins a new history. Backends, in order: ``numba`` (K = 2 on the
    CPU, one pass over memory), ``doubling`` (any K and device: ceil(log2 T) rounds over all steps), ``reference``.
    The first two can be differentiated once. Raises ValueError for shapes that do not fit. Source: G. Blelloch, Prefix
    Sums and Their Applications, 1990, section 1.4; the blocks: arXiv 2510.21450 (ParaRNN).
    """
    h = _check(a, b, h0)
    order = range(b.shape[1])
    a_steps, b_steps, states = a.unbind(1), b.unbind(1), [h] * b.shape[1]
    for t in reversed(order) if reverse else order:
        h = apply_blocks(a_steps[t], h) + b_steps[t]
        states[t] = h
    return torch.stack(states, 1) if states else b


def _doubling(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """Hillis and Steele: after the round of distance d each step holds the composition of 2d steps."""
    if reverse:
        return _doubling(a.flip(1), b.flip(1), h0, False).flip(1)
    first = apply_blocks(a[:, :1], h0[:, None]) + b[:, :1]
    b = torch.cat((first, b[:, 1:]), 1)
    distance, steps = 1, b.shape[1]
    while distance < steps:
        late = a[:, distance:]
        b = torch.cat((b[:, :distance], b[:, distance:] + apply_blocks(late, b[:, :-distance])), 1)
        if 2 * distance < steps:
            product = (late.unsqueeze(4) * a[:, :-distance].unsqueeze(2)).sum(3)
            a = torch.cat((a[:, :distance], product), 1)
        distance *= 2
    return b


def _compiled(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    from . import affine_numba  # imports numba

    return affine_numba.scan(a, b, h0, reverse)


class _Scan(torch.autograd.Function):
    """With u_t = dL/dh_t in full: u_t = grad_t + A_(t+1)^T u_(t+1), dA_t = u_t h_(t-1)^T, db = u, dh0 = A_1^T u_1."""

    @staticmethod
    def forward(ctx, solve, a, b, h0, reverse):  # noqa: ANN001, ANN205 (torch's own signature)
        h = solve(a, b, h0, reverse)
        ctx.save_for_backward(a, h, h0)
        ctx.solve, ctx.reverse = solve, reverse
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        a, h, h0 = ctx.saved_tensors
        u = adjoint_scan(a, grad, ctx.solve, ctx.reverse)
        da = None
        if ctx.needs_input_grad[1]:
            parts = (h[:, 1:], h0[:, None]) if ctx.reverse else (h0[:, None], h[:, :-1])
            da = u.unsqueeze(3) * torch.cat(parts, 1).unsqueeze(2)
        end = -1 if ctx.reverse else 0
        dh0 = apply_blocks(transpose_blocks(a[:, end]), u[:, end]) if ctx.needs_input_grad[3] else None
        return None, da, u, dh0, None


Solve = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def adjoint_scan(a: Tensor, grad: Tensor, solve: Solve, reverse: bool = False) -> Tensor:
    """u_t = grad_t + A_(t+1)^T u_(t+1): the gradients of all states from those of the outputs, one scan."""
    shifted, pad = transpose_blocks(a), torch.zeros_like(a[:, :1])
    shifted = torch.cat((pad, shifted[:, :-1]) if reverse else (shifted[:, 1:], pad), 1)
    return solve(shifted, grad, torch.zeros_like(grad[:, 0]), not reverse)


def _run(solve: Solve, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    h = _check(a, b, h0)
    if not b.shape[1]:
        return b
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), h.dtype)
    return _Scan.apply(solve, a.to(dtype), b.to(dtype), h.to(dtype), reverse)


def _why_not_numba(a: Tensor, *others: Tensor) -> str | None:
    reason = why_not_kernel(a, *others)
    if reason is None and a.shape[2] != 2:
        return f"the kernel is for two numbers a channel, not {a.shape[2]}"
    if reason is None and any(t.dtype not in (torch.float32, torch.float64) for t in (a, *others)):
        return "the kernel computes in float32 and float64"
    return reason


@affine_scan.backend("numba", when=on_tensors(_why_not_numba))
def _numba_backend(a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    return _run(_compiled, a, b, h0, reverse)


@affine_scan.backend("doubling", when=on_tensors(why_traced))
def _doubling_backend(a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    return _run(_doubling, a, b, h0, reverse)


@affine_scan.cases
def affine_cases() -> Iterator[Case]:
    g = torch.Generator().manual_seed(0)

    def case(name: str, shape: tuple[int, int, int, int], *, tiny: bool = False, gain: float = 1.0, **kwargs) -> Case:
        batch, steps, size, width = shape
        a = torch.randn(batch, steps, size, size, width, dtype=torch.float64, generator=g) * gain * 0.6 / size**0.5
        b = torch.randn(batch, steps, size, width, dtype=torch.float64, generator=g)
        h0 = torch.randn(batch, size, width, dtype=torch.float64, generator=g)
        return Case(name, (a, b, h0), kwargs, grad=(0, 1, 2), tiny=tiny)

    yield case("tiny", (2, 4, 2, 2), tiny=True)
    yield case("tiny, reverse", (1, 5, 2, 3), tiny=True, reverse=True)
    yield case("one step", (3, 1, 2, 7))
    yield case("odd", (3, 37, 2, 19))
    yield case("odd, reverse", (2, 23, 2, 33), reverse=True)
    yield case("one number a channel", (2, 21, 1, 9))
    yield case("three numbers a channel", (2, 18, 3, 5), reverse=True)
    yield case("forgets everything", (2, 9, 2, 4), gain=0.0)
    a, b, _ = case("", (2, 11, 2, 6)).args
    yield Case("no initial state", (a, b), grad=(0, 1))
