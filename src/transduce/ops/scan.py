"""The elementwise linear recurrence, real or complex: the core of gated linear RNNs and diagonal state space
models."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Case, on_tensors, op
from .tracing import why_no_triton, why_not_kernel, why_not_triton, why_traced

_HALF = (torch.float16, torch.bfloat16)


def _prepare(
    a: Tensor, b: Tensor, h0: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """Check shapes, broadcast to (B,T,D), (B,T,D), (B,D), and promote; also returns the dtype of the
    result."""
    if a.dim() != 3 or b.dim() != 3:
        raise ValueError(
            f"linear_scan needs a and b of shape (B,T,D), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    # torch.broadcast_shapes costs more than a small scan, so equal shapes do not ask it.
    shape = a.shape if a.shape == b.shape else torch.broadcast_shapes(a.shape, b.shape)
    dtype = a.dtype if a.dtype == b.dtype else torch.promote_types(a.dtype, b.dtype)
    state_shape = (shape[0], shape[2])
    if h0 is not None:
        dtype = torch.promote_types(dtype, h0.dtype)
        if h0.shape != state_shape and torch.broadcast_shapes(h0.shape, state_shape) != state_shape:
            raise ValueError(f"linear_scan needs h0 of shape {state_shape}, got {tuple(h0.shape)}")
    if resets is not None and (resets.shape != shape[:2] or resets.dtype != torch.bool):
        raise ValueError(
            f"linear_scan needs bool resets of shape {tuple(shape[:2])}, "
            f"got {resets.dtype} {tuple(resets.shape)}"
        )
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"linear_scan needs floating point or complex numbers, got {dtype}")
    work = torch.float32 if dtype in _HALF else dtype
    # torch.zeros costs half of what new_zeros does.
    state = torch.zeros(state_shape, dtype=work, device=a.device) if h0 is None else _as(h0, work, state_shape)
    return _as(a, work, shape), _as(b, work, shape), state, dtype


def _as(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """``x`` in this dtype and shape; nothing is called for what it already is."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.shape == shape else x.expand(shape)


@op
def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, resets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The linear recurrence h_t = a_t * h_(t-1) + b_t, elementwise, for all t: (B,T,D).

    Args:
        a, b: (B,T,D), real or complex. They broadcast against each other, so ``a`` may be (1,1,D) for a
            constant decay or (B,T,1) for one a step; a broadcast operand is expanded in memory before a fast
            backend runs.
        h0: (B,D), the state before the first step (with ``reverse``: after the last one); None means zero.
        resets: (B,T) bool. True at t: the history restarts there, h_t = b_t, whatever came before (NaN
            included).
        reverse: run from the last step to the first, h_t = a_t * h_(t+1) + b_t.

    Returns:
        h (B,T,D) in the promoted dtype of ``a``, ``b`` and ``h0``. Half precision is computed in float32 and
        rounded at the end; a float32 ``h0`` makes the result float32. T = 0 gives an empty result.

    Backends, in order: ``numba`` (CPU: one pass over memory, forward and backward; where a batch has fewer rows than
    there are threads, a second pass over the steps at which anything is left of what came before their half, third ..,
    so that the last bits depend on the number of threads), ``triton`` (CUDA devices: one
    pass forward, one back and products of its result), ``loop`` (any device: one torch operation a step and an
    analytic backward), ``reference``. All but the last can be
    differentiated once only; for second derivatives use ``use_backend(linear_scan="reference")``.
    ``linear_scan.matrix`` gives the implied matrix.

    Raises ValueError for shapes that do not fit. Source: G. Blelloch, Prefix Sums and Their Applications,
    1990, section 1.4 (the recurrence as a scan); E. Martin and C. Cundy, Parallelizing Linear Recurrent
    Neural Nets Over Sequence Length, ICLR 2018, section 2 (its use in, and gradient for, neural networks).
    """
    a, b, h, dtype = _prepare(a, b, h0, resets)
    if b.shape[1] == 0:
        return b.to(dtype)
    if resets is not None:
        a = torch.where(resets[..., None], 0, a)
    order = range(b.shape[1])
    a_steps, b_steps, states = a.unbind(1), b.unbind(1), [h] * b.shape[1]
    reset_steps = None if resets is None else resets[..., None].unbind(1)
    for t in reversed(order) if reverse else order:
        if reset_steps is not None:
            h = torch.where(reset_steps[t], 0, h)
        h = a_steps[t] * h + b_steps[t]
        states[t] = h
    return torch.stack(states, 1).to(dtype)


# ---------------------------------------------------------------- backends with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import scan_numba  # imports numba

    return scan_numba


def _numba_scan(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    return _compiled().forward(a, b, h0, resets, reverse)


def _numba_scan_back(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _compiled().backward(grad, saved, resets, reverse, wanted)


@functools.cache
def _gpu() -> ModuleType:
    from . import scan_triton  # imports triton

    return scan_triton


def _triton_scan(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    return _gpu().forward(a, b, h0, resets, reverse)


def _triton_scan_back(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _gpu().backward(grad, saved, resets, reverse)


def _loop_scan(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    out = torch.empty_like(b)
    order = range(b.shape[1])
    a_steps, b_steps, out_steps = a.unbind(1), b.unbind(1), out.unbind(1)
    reset_steps = None if resets is None else resets[..., None].unbind(1)
    h = h0
    for t in reversed(order) if reverse else order:
        torch.addcmul(b_steps[t], a_steps[t], h, out=out_steps[t])
        if reset_steps is not None:
            torch.where(reset_steps[t], b_steps[t], out_steps[t], out=out_steps[t])
        h = out_steps[t]
    return out


def _loop_scan_back(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    a, h, h0 = saved
    if resets is not None:
        a = torch.where(resets[..., None], 0, a)
    conj = a.conj().resolve_conj()
    u = torch.empty_like(grad)
    order = range(grad.shape[1])
    grad_steps, a_steps, u_steps = grad.unbind(1), conj.unbind(1), u.unbind(1)
    carry = torch.zeros_like(h0)
    for t in order if reverse else reversed(order):
        torch.add(grad_steps[t], carry, out=u_steps[t])
        torch.mul(u_steps[t], a_steps[t], out=carry)
    if not wanted[0]:
        return u, u, carry
    before = torch.cat((h[:, 1:], h0[:, None]), 1) if reverse else torch.cat((h0[:, None], h[:, :-1]), 1)
    da = u * before.conj()
    if resets is not None:
        da = torch.where(resets[..., None], 0, da)
    return da, u, carry


_PAIRS = {
    "numba": (_numba_scan, _numba_scan_back),
    "triton": (_triton_scan, _triton_scan_back),
    "loop": (_loop_scan, _loop_scan_back),
}


class _Scan(torch.autograd.Function):
    """With u_t = dL/dh_t in full: u_t = grad_t + conj(a_(t+1)) u_(t+1); db = u, da_t = u_t conj(h_(t-1)),
    dh0 = conj(a_1) u_1."""

    @staticmethod
    def forward(ctx, backend, a, b, h0, resets, reverse):  # noqa: ANN001, ANN205 (torch's own signature)
        h = _PAIRS[backend][0](a, b, h0, resets, reverse)
        ctx.save_for_backward(a, h, h0, resets)
        ctx.backend, ctx.reverse = backend, reverse
        return h

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        # With create_graph the result must refuse to be differentiated again; without, that costs for nothing.
        return _back_once(ctx, grad) if torch.is_grad_enabled() else _back(ctx, grad)


def _back(ctx, grad):  # noqa: ANN001, ANN202
    a, h, h0, resets = ctx.saved_tensors
    _, need_a, need_b, need_h0, *_ = ctx.needs_input_grad
    if not grad.is_contiguous():
        grad = grad.contiguous()
    da, db, dh0 = _PAIRS[ctx.backend][1](grad, (a, h, h0), resets, ctx.reverse, (need_a, need_b))
    return None, da if need_a else None, db if need_b else None, dh0 if need_h0 else None, None, None


_back_once = once_differentiable(_back)


def _run(
    backend: str, a: Tensor, b: Tensor, h0: Tensor | None, resets: Tensor | None, reverse: bool
) -> Tensor:
    a, b, h, dtype = _prepare(a, b, h0, resets)
    resets = None if resets is None else resets.contiguous()
    if dtype.is_complex:
        a, b, h = a.resolve_conj(), b.resolve_conj(), h.resolve_conj()
    a, b, h = (t if t.is_contiguous() else t.contiguous() for t in (a, b, h))
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or h.requires_grad):
        out = _Scan.apply(backend, a, b, h, resets, reverse)
    else:
        out = _PAIRS[backend][0](a, b, h, resets, reverse)
    return out if out.dtype == dtype else out.to(dtype)


@linear_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, resets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    return _run("numba", a, b, h0, resets, reverse)


@linear_scan.backend("triton", when=on_tensors(why_not_triton), here=why_no_triton)
def _triton_backend(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, resets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    return _run("triton", a, b, h0, resets, reverse)


@linear_scan.backend("loop", when=on_tensors(why_traced))
def _loop_backend(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, resets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    return _run("loop", a, b, h0, resets, reverse)


def scan_matrix(
    a: Tensor, steps: int | None = None, *, resets: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The matrix M (B,D,T,T) with ``linear_scan(a, b)[:, t, d] = sum_s M[:, d, t, s] b[:, s, d]``.

    M[t, s] = a_(s+1) ... a_t for s <= t and zero above the diagonal (transposed roles with ``reverse``).
    Column s is the
    answer to a unit impulse at step s, and that is how it is computed: exact for a = 0 and for complex a.
    ``steps`` is needed where ``a`` has T = 1 and stands for a constant decay. Costs O(B D T^2) memory: for
    analysis and tests.
    """
    if a.dim() != 3:
        raise ValueError(f"scan_matrix needs a of shape (B,T,D), got {tuple(a.shape)}")
    steps = a.shape[1] if steps is None else steps
    a = a.expand(a.shape[0], steps, a.shape[2])
    batch, _, width = a.shape
    impulses = torch.eye(steps, dtype=a.dtype, device=a.device)[None, :, None, :].expand(
        batch, steps, width, steps
    )
    answers = linear_scan(
        a[..., None].expand_as(impulses).flatten(2), impulses.flatten(2), resets=resets, reverse=reverse
    )
    return answers.unflatten(2, (width, steps)).permute(0, 2, 1, 3)


linear_scan.matrix = scan_matrix


# ---------------------------------------------------------------- cases


def _inputs(
    shape: tuple[int, int, int], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Decays of modulus below 1 (with a phase when complex), standard normal inputs and state."""

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, generator=generator)

    raw = normal(*shape)
    a = torch.tanh(raw) if not dtype.is_complex else raw / (1 + raw.abs())
    return a, normal(*shape), normal(shape[0], shape[2])


@linear_scan.cases
def scan_cases() -> Iterator[Case]:
    """Every argument, odd lengths, one step, broadcast decays, restarts, both directions, extremes."""
    g = torch.Generator().manual_seed(0)

    def case(
        name: str, shape: tuple[int, int, int], *, tiny: bool = False, dtype=torch.float64, **kwargs
    ) -> Case:
        return Case(name, _inputs(shape, g, dtype), kwargs, grad=(0, 1, 2), tiny=tiny)

    def resets(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) < 0.3

    yield case("tiny", (2, 5, 3), tiny=True)
    yield case("tiny complex", (2, 4, 3), tiny=True, dtype=torch.complex128)
    yield case("tiny, reverse, resets", (2, 5, 2), tiny=True, reverse=True, resets=resets(2, 5))
    yield case("tiny complex, resets", (1, 4, 2), tiny=True, dtype=torch.complex128, resets=resets(1, 4))
    yield case("one step", (3, 1, 7))
    yield case("odd", (3, 37, 19), resets=resets(3, 37))
    yield case("complex, reverse", (2, 23, 17), dtype=torch.complex128, reverse=True)
    yield case("two threads, one row", (1, 257, 131), resets=resets(1, 257))
    yield case("two threads, three rows", (3, 129, 127), reverse=True, resets=resets(3, 129))
    a, b, h0 = _inputs((4, 33, 18), g)
    yield Case("no initial state", (a, b), grad=(0, 1))
    yield Case("constant decay", (a[:1, :1], b, h0), grad=(0, 1, 2))
    yield Case("one decay a step", (a[..., :1], b, h0[:, :1]), grad=(0, 1, 2))
    yield Case("no decay at all", (torch.ones_like(a), b, h0), grad=(0, 1, 2), scale=6.0)
    yield Case("forgets everything", (torch.zeros_like(a), b, h0), grad=(0, 1, 2))
    yield Case("huge inputs", (a, b * 1e15, h0 * 1e15), grad=(0, 1, 2), scale=1e15)
    yield Case("subnormal decay products", (a * 1e-20, b, h0), grad=(0, 1, 2))
