"""The linear recurrence whose decays are the same at every step, real or complex: diagonal state spaces.

The decays are not spread over rows and steps, and complex numbers are two planes of real ones: the maps into and out of
the state are then plain real matrix products, and nothing here needs a complex dtype.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Case, on_tensors, op
from .tracing import full_precision, why_no_triton, why_not_kernel, why_not_triton

_HALF = (torch.float16, torch.bfloat16)
_CHUNK = 32
"""Steps that the chunked form takes at a time: its matrices are (N, chunk, chunk)."""


def _check(
    decay: Tensor, b: Tensor, h0: Tensor | None, mask: Tensor | None, resets: Tensor | None
) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the result and the one to compute in. Raises ValueError for what does not fit."""
    if b.dim() != 4 or b.shape[2] not in (1, 2) or decay.shape != b.shape[2:]:
        raise ValueError(
            "diagonal_scan needs decay (P,N) and b (B,T,P,N) with P = 1 (real) or 2 (real and imaginary parts), "
            f"got {tuple(decay.shape)} and {tuple(b.shape)}"
        )
    if h0 is not None and h0.shape != (b.shape[0], *b.shape[2:]):
        raise ValueError(
            f"diagonal_scan needs h0 of shape {(b.shape[0], *b.shape[2:])}, got {tuple(h0.shape)}"
        )
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != b.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"diagonal_scan needs a bool {label} of shape {tuple(b.shape[:2])}, got {flags.dtype} {tuple(flags.shape)}"
            )
    dtype = torch.promote_types(decay.dtype, b.dtype)
    dtype = dtype if h0 is None else torch.promote_types(dtype, h0.dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"diagonal_scan needs floating point numbers, got {dtype}")
    return dtype, torch.float32 if dtype in _HALF else dtype


def _start(h0: Tensor | None, b: Tensor, work: torch.dtype) -> Tensor:
    if h0 is not None:
        return h0.to(work)
    return torch.zeros(b.shape[0], *b.shape[2:], dtype=work, device=b.device)


def _times(a: Tensor, h: Tensor) -> Tensor:
    """The product of two real or complex numbers in planes (..., P, N)."""
    if h.shape[-2] == 1:
        return a * h
    (a_re, a_im), (re, im) = a.unbind(-2), h.unbind(-2)
    return torch.stack((a_re * re - a_im * im, a_re * im + a_im * re), -2)


@op
def diagonal_scan(
    decay: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The recurrence h_t = decay * h_(t-1) + b_t with one decay a channel for all time: (B,T,P,N).

    Args:
        decay: (P,N). P = 1: real decays; P = 2: complex ones, real parts first, then imaginary parts.
        b: (B,T,P,N), in the same planes.
        h0: (B,P,N), the state before the first step; None means zero.
        mask: (B,T) bool. False: the row keeps its state at this step, whatever ``b`` holds there (NaN included).
        resets: (B,T) bool. True: h_t = b_t, whatever came before. A reset at a masked step has no effect.

    Returns h (B,T,P,N) in the promoted dtype. Half precision is computed in float32 and rounded at the end.

    Backends, in order: ``numba`` (CPU: one pass over memory, forward and backward, decays in the first-level cache;
    can be differentiated once), ``triton`` (CUDA devices: the walk of ``linear_scan``, also once), ``chunked`` (any
    device, without mask and resets: products with the matrices of powers of 32 steps), ``reference``.
    ``diagonal_scan.matrix`` gives the implied matrix.

    Raises ValueError for shapes that do not fit. Source: A. Gupta et al., Diagonal State Spaces, NeurIPS 2022, section
    3; A. Orvieto et al., arXiv 2303.06349, section 3.2.
    """
    dtype, work = _check(decay, b, h0, mask, resets)
    decay, h = decay.to(work), _start(h0, b, work)
    masks = (None,) * b.shape[1] if mask is None else mask[..., None, None].unbind(1)
    restarts = (None,) * b.shape[1] if resets is None else resets[..., None, None].unbind(1)
    states: list[Tensor] = []
    for b_t, valid, restart in zip(b.to(work).unbind(1), masks, restarts):
        before = h if restart is None else torch.where(restart, 0, h)
        if valid is None:
            h = _times(decay, before) + b_t
        else:
            h = torch.where(valid, _times(decay, before) + torch.where(valid, b_t, 0), h)
        states.append(h)
    return (torch.stack(states, 1) if states else torch.zeros_like(b)).to(dtype)


# ---------------------------------------------------------------- compiled, with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import diagonal_scan_numba  # imports numba

    return diagonal_scan_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import diagonal_scan_triton  # imports triton

    return diagonal_scan_triton


class _Scan(torch.autograd.Function):
    """With u_t = dL/dh_t in full: u_t = grad_t + conj(decay) u_(t+1); db = u, ddecay = sum_t u_t conj(h_(t-1)),
    dh0 = conj(decay) u_1."""

    @staticmethod
    def forward(ctx, kernels, decay, b, h0, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        h = kernels.forward(decay, b, h0, mask, resets)
        ctx.save_for_backward(decay, h, h0, mask, resets)
        ctx.kernels = kernels
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        decay, h, h0, mask, resets = ctx.saved_tensors
        found = ctx.kernels.backward(grad.contiguous(), decay, h, h0, mask, resets)
        return None, *(g if need else None for g, need in zip(found, ctx.needs_input_grad[1:])), None, None


def _run(
    kernels: ModuleType, decay: Tensor, b: Tensor, h0: Tensor | None, mask: Tensor | None, resets: Tensor | None
) -> Tensor:
    dtype, work = _check(decay, b, h0, mask, resets)
    decay, b, h = (t.to(work).contiguous() for t in (decay, b, _start(h0, b, work)))
    mask, resets = (None if t is None else t.contiguous() for t in (mask, resets))
    if torch.is_grad_enabled() and (decay.requires_grad or b.requires_grad or h.requires_grad):
        out = _Scan.apply(kernels, decay, b, h, mask, resets)
    else:
        out = kernels.forward(decay, b, h, mask, resets)
    return out.to(dtype)


@diagonal_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    decay: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    return _run(_compiled(), decay, b, h0, mask, resets)


@diagonal_scan.backend("triton", when=on_tensors(why_not_triton), here=why_no_triton)
def _triton_backend(
    decay: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    return _run(_gpu(), decay, b, h0, mask, resets)


# ---------------------------------------------------------------- chunks of matrix products


def powers(decay: Tensor, count: int) -> Tensor:
    """decay^0 .. decay^(count-1): (count, ...). By doubling, so that zero decays and their gradients are exact."""
    found, factor = torch.ones_like(decay)[None], decay
    while len(found) < count:
        found = torch.cat((found, found * factor))
        factor = factor * factor
    return found[:count]


def _why_not_chunked(
    decay: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> str | None:
    if mask is not None or resets is not None:
        return "a mask or resets change the powers from row to row"
    return "a single step is cheaper as a recurrence" if b.dim() == 4 and b.shape[1] < 2 else None


@diagonal_scan.backend("chunked", when=_why_not_chunked)
def _chunked_backend(
    decay: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    dtype, work = _check(decay, b, h0, mask, resets)
    steps, size = b.shape[1], min(_CHUNK, b.shape[1])
    a, inputs, carry = (_joined(t.to(work)) for t in (decay, b, _start(h0, b, work)))
    inputs = torch.nn.functional.pad(inputs, (0, 0, 0, -steps % size)).unflatten(1, (-1, size))  # (B,K,C,N)
    rising = powers(a, size + 1)  # (C+1,N)
    lag = torch.arange(size, device=b.device)[:, None] - torch.arange(size, device=b.device)
    toeplitz = torch.where((lag >= 0)[..., None], rising[lag.clamp(min=0)], 0)
    with full_precision(b):
        local = torch.einsum("tsn,bksn->bktn", toeplitz, inputs)
    carries = [carry]
    for end in local[:, :, -1].unbind(1):
        carries.append(rising[size] * carries[-1] + end)
    h = local + rising[1:] * torch.stack(carries[:-1], 1)[:, :, None]
    return _planes(h.flatten(1, 2)[:, :steps], b.shape[2]).to(dtype)


def _joined(x: Tensor) -> Tensor:
    """(...,P,N) in planes -> (...,N), complex where P = 2."""
    return x[..., 0, :] if x.shape[-2] == 1 else torch.complex(*x.unbind(-2))


def _planes(x: Tensor, planes: int) -> Tensor:
    return x[..., None, :] if planes == 1 else torch.stack((x.real, x.imag), -2)


def diagonal_matrix(decay: Tensor, steps: int) -> Tensor:
    """The matrix (N,T,T), complex where P = 2, with h_t = sum_s M[:, t, s] b_s: decay^(t-s) for s <= t."""
    lag = torch.arange(steps, device=decay.device)[:, None] - torch.arange(steps, device=decay.device)
    rising = powers(_joined(decay), steps)
    return torch.where((lag >= 0)[..., None], rising[lag.clamp(min=0)], 0).permute(2, 0, 1)


diagonal_scan.matrix = diagonal_matrix


# ---------------------------------------------------------------- cases


@diagonal_scan.cases
def diagonal_cases() -> Iterator[Case]:
    """Real and complex, odd sizes, one step, marks, decays of zero and one, extremes."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=g)

    def case(name: str, shape: tuple[int, int, int, int], *, tiny: bool = False, **marks: float) -> Case:
        raw = normal(*shape[2:])
        decay = 0.98 * raw / raw.square().sum(0).add(0.1).sqrt()
        flags = {k: torch.rand(shape[:2], generator=g) < share for k, share in marks.items()}
        return Case(
            name, (decay, normal(*shape), normal(shape[0], *shape[2:])), flags, grad=(0, 1, 2), tiny=tiny
        )

    yield case("tiny", (2, 5, 1, 3), tiny=True)
    yield case("tiny complex", (2, 5, 2, 3), tiny=True)
    yield case("tiny, marks", (2, 6, 1, 2), tiny=True, mask=0.6, resets=0.3)
    yield case("tiny complex, marks", (2, 6, 2, 2), tiny=True, mask=0.6, resets=0.3)
    yield case("one step", (3, 1, 2, 7))
    yield case("odd", (3, 37, 1, 19), resets=0.2)
    yield case("complex, odd", (3, 67, 2, 19))
    yield case("complex, masked", (3, 37, 2, 19), mask=0.6)
    yield case("two threads, one row", (1, 129, 2, 277), resets=0.1)
    yield case("two threads, three rows", (3, 65, 1, 257), mask=0.8)
    decay, b, h0 = case("", (4, 33, 2, 18)).args
    yield Case("no initial state", (decay, b), grad=(0, 1))
    yield Case("no decay at all", (torch.stack((torch.ones(18), torch.zeros(18))), b, h0), grad=(0, 1, 2), scale=6.0)
    yield Case("forgets everything", (torch.zeros_like(decay), b, h0), grad=(0, 1, 2))
    yield Case("huge inputs", (decay, b * 1e15, h0 * 1e15), grad=(0, 1, 2), scale=1e15)
