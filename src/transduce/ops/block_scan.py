"""The linear recurrence whose transition is a small dense matrix that may change at every step: block-diagonal
linear RNNs, products of permutations, rotations or stochastic matrices."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op, several_steps
from .tracing import why_no_triton, why_not_kernel, why_not_triton


def _check(
    a: Tensor, v: Tensor | None, h0: Tensor | None, mask: Tensor | None, resets: Tensor | None
) -> torch.dtype:
    """Shapes that fit together, and the dtype to work in: float64 when any input is, else float32."""
    if a.dim() != 5 or a.shape[3] != a.shape[4]:
        raise ValueError(f"block_scan needs a of shape (B,T,H,b,b), got {tuple(a.shape)}")
    if v is not None and v.shape != a.shape[:4]:
        raise ValueError(f"block_scan needs v of shape {tuple(a.shape[:4])}, got {tuple(v.shape)}")
    state = (a.shape[0], *a.shape[2:4])
    if h0 is not None and h0.shape != state:
        raise ValueError(f"block_scan needs h0 of shape {state}, got {tuple(h0.shape)}")
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != a.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"block_scan needs a bool {label} of shape {tuple(a.shape[:2])}, got {flags.dtype} {tuple(flags.shape)}"
            )
    tensors = [t for t in (a, v, h0) if t is not None]
    if any(not t.dtype.is_floating_point for t in tensors):
        raise ValueError("block_scan needs floating point numbers")
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _initial(a: Tensor, h0: Tensor | None, work: torch.dtype) -> Tensor:
    return a.new_zeros(a.shape[0], *a.shape[2:4], dtype=work) if h0 is None else h0.to(work)


def _plain(
    a: Tensor, v: Tensor | None, mask: Tensor | None, resets: Tensor | None, work: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same recurrence without flags: a masked step has the identity and adds nothing, a reset has zero."""
    a = zero_masked(a, mask).to(work)
    v = a.new_zeros(a.shape[:4]) if v is None else zero_masked(v, mask).to(work)
    if resets is not None:
        a = torch.where(resets[..., None, None, None], 0, a)
    if mask is not None:
        identity = torch.eye(a.shape[-1], dtype=work, device=a.device)
        a = torch.where(mask[..., None, None, None], a, identity)
    return a, v


@op
def block_scan(
    a: Tensor,
    v: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """h_t = A_t h_(t-1) + v_t in every block, for all t: (B,T,H,b), the state after each step.

    Args:
        a: A, (B,T,H,b,b): H blocks of b by b at every step.
        v: (B,T,H,b), None adds nothing.
        h0: (B,H,b), the state before the first step; None means zero.
        mask: (B,T) bool. False: the state stays as it is and is shown again; what ``a`` and ``v`` hold there (NaN
            included) has no influence.
        resets: (B,T) bool. True: the state before the step counts as zero, so h_t = v_t. A reset at a masked step has
            no effect.

    Returns h, float64 where an input is float64, else float32.

    Backends, in order: ``numba`` (CPU: one pass over memory, analytic backward, once differentiable), ``triton`` (CUDA
    devices: step by step, also once), ``parallel`` (any device: steps are joined in pairs, (A_2, v_2) after (A_1, v_1)
    = (A_2 A_1, A_2 v_1 + v_2), log2 T rounds with about b times the arithmetic), ``reference`` (used for a single
    step). ``block_scan.matrix`` gives the implied matrix.

    Raises ValueError for shapes that do not fit. Source: T.-H. Fan, T.-C. Chi, A. Rudnicky, Advancing Regular Language
    Reasoning in Linear Recurrent Neural Networks, arXiv 2309.07412, section 4; the pairing is G. Blelloch, Prefix Sums
    and Their Applications, 1990, section 1.4.
    """
    work = _check(a, v, h0, mask, resets)
    h = _initial(a, h0, work)
    states: list[Tensor] = []
    a, v = _plain(a, v, mask, resets, work)
    for a_t, v_t in zip(a.unbind(1), v.unbind(1)):
        h = (a_t @ h[..., None]).squeeze(-1) + v_t
        states.append(h)
    return torch.stack(states, 1) if states else v


# ---------------------------------------------------------------- compiled, with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import block_scan_numba  # imports numba

    return block_scan_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import block_scan_triton  # imports triton

    return block_scan_triton


class _BlockScan(torch.autograd.Function):
    """With u_t = dL/dh_t in full: u_t = grad_t + A_(t+1)^T u_(t+1); dv = u, dA_t = u_t h_(t-1)^T, dh0 = A_1^T u_1."""

    @staticmethod
    def forward(ctx, kernels, a, v, h0, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        h = kernels.forward(a, v, h0, mask, resets)
        ctx.kernels = kernels
        ctx.save_for_backward(a, h, h0, mask, resets)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        a, h, h0, mask, resets = ctx.saved_tensors
        _, need_a, need_v, need_h0, *_ = ctx.needs_input_grad
        flags, wanted = (mask, resets), (need_a, need_v)
        da, dv, dh0 = ctx.kernels.backward(grad.contiguous(), (a, h, h0), flags, wanted)
        return None, da if need_a else None, dv if need_v else None, dh0 if need_h0 else None, None, None


def _run(
    kernels: ModuleType, a: Tensor, v: Tensor | None, h0: Tensor | None, mask: Tensor | None, resets: Tensor | None
) -> Tensor:
    work = _check(a, v, h0, mask, resets)
    h = _initial(a, h0, work).contiguous()
    a = a.to(work).contiguous()
    v = None if v is None else v.to(work).contiguous()
    mask, resets = (None if flags is None else flags.contiguous() for flags in (mask, resets))
    return _BlockScan.apply(kernels, a, v, h, mask, resets)


@block_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    a: Tensor,
    v: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    return _run(_compiled(), a, v, h0, mask, resets)


@block_scan.backend("triton", when=on_tensors(why_not_triton), here=why_no_triton)
def _triton_backend(
    a: Tensor,
    v: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    # A masked step counts as no restart; the kernel looks at both flags by themselves.
    resets = resets if resets is None or mask is None else resets & mask
    return _run(_gpu(), a, v, h0, mask, resets)


# ---------------------------------------------------------------- log-depth


@block_scan.backend("parallel", when=several_steps(5))
def _parallel_backend(
    a: Tensor,
    v: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    work = _check(a, v, h0, mask, resets)
    a, v = _plain(a, v, mask, resets, work)
    first = v[:, :1] if h0 is None else v[:, :1] + _times(a[:, :1], h0.to(work)[:, None])
    return _prefixes(a, torch.cat((first, v[:, 1:]), 1))


def _times(a: Tensor, h: Tensor) -> Tensor:
    return (a @ h[..., None]).squeeze(-1)


def _prefixes(a: Tensor, v: Tensor) -> Tensor:
    """h of a recurrence from zero: solve it for every other step, with two steps as one, then fill in the rest."""
    steps = v.shape[1]
    if steps == 1:
        return v
    whole = steps - steps % 2
    early_a, late_a, early_v, late_v = a[:, 0:whole:2], a[:, 1:whole:2], v[:, 0:whole:2], v[:, 1:whole:2]
    late = _prefixes(late_a @ early_a, _times(late_a, early_v) + late_v)
    early = torch.cat((v[:, :1], _times(a[:, 2::2], late[:, : (steps - 1) // 2]) + v[:, 2::2]), 1)
    together = torch.stack((early[:, : whole // 2], late), 2).flatten(1, 2)
    return together if whole == steps else torch.cat((together, early[:, -1:]), 1)


def block_scan_matrix(a: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
    """The blocks M (B,H,T,T,b,b) with ``h[:, t] = sum_s M[:, :, t, s] v[:, s]`` for a zero initial state.

    M[t, s] = A_t ... A_(s+1) for s <= t with no reset behind s, else zero. Arguments as for :func:`block_scan`. Costs
    O(B H T^2 b^2) memory: for analysis and tests.
    """
    work = _check(a, None, None, mask, resets)
    batch, steps, heads, size, _ = a.shape
    written = torch.eye(steps, dtype=work, device=a.device)  # row t: an impulse at step t, and none at a masked one
    written = written.expand(batch, -1, -1) if mask is None else written * mask[..., None]
    a, _ = _plain(a, None, mask, resets, work)
    row, rows = a.new_zeros(batch, heads, steps, size, size), []
    identity = torch.eye(size, dtype=work, device=a.device)
    for a_t, new in zip(a.unbind(1), written.unbind(1)):
        row = a_t[:, :, None] @ row + new[:, None, :, None, None] * identity
        rows.append(row)
    return torch.stack(rows, 2)


block_scan.matrix = block_scan_matrix


# ---------------------------------------------------------------- cases


@block_scan.cases
def block_scan_cases() -> Iterator[Case]:
    """Every argument, blocks of several sizes, odd lengths, one step, flags, extremes."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(name: str, shape: tuple[int, int, int, int], *, flags: str = "", tiny: bool = False) -> Case:
        batch, steps, heads, size = shape
        a = normal(*shape, size) / (1.5 * size**0.5)
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        args = (a, normal(*shape), normal(batch, heads, size))
        return Case(name, args, kwargs, grad=(0, 1, 2), tiny=tiny, scale=2.0)

    yield case("tiny", (2, 5, 2, 2), tiny=True)
    yield case("tiny, mask and resets", (2, 6, 1, 3), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 4))
    yield case("two steps", (2, 2, 3, 8))
    yield case("odd", (2, 37, 3, 5))
    yield case("blocks of 8", (2, 33, 2, 8), flags="resets")
    yield case("blocks of 4, mask", (3, 31, 5, 4), flags="mask")
    yield case("one number a block", (2, 9, 7, 1), flags="mask resets")
    yield case("two threads, one row", (1, 65, 6, 8), flags="mask resets")
    yield case("two threads, three rows", (3, 67, 3, 16))
    a, v, h0 = case("", (2, 21, 2, 4)).args
    yield Case("no initial state", (a, v), grad=(0, 1))
    yield Case("nothing added", (torch.softmax(3 * a, -2), None, h0), grad=(0, 2), scale=2.0)
    turned = torch.eye(4, dtype=torch.float64)[torch.rand(2, 21, 2, 4, generator=g).argsort(-1)]
    yield Case("permutations", (turned, v, h0), grad=(0, 1, 2), scale=6.0)
    yield Case("forgets everything", (torch.zeros_like(a), v, h0), grad=(0, 1, 2), scale=2.0)
    yield Case("huge inputs", (a, v * 1e15, h0 * 1e15), grad=(0, 1, 2), scale=1e15)
