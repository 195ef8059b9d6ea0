"""What the ops with a matrix state share: checks of their arguments, the precision they work in, pieces of time, and
the compiled recurrence S_t = diag(a_t) S_(t-1) + k_t v_t^T, y_t = S_t^T q_t with its analytic backward."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tracing import why_not_kernel, why_not_triton


def check_inputs(name: str, q: Tensor, k: Tensor, v: Tensor, s0: Tensor | None) -> None:
    """q and k (B,T,H,K), v (B,T,H,V), s0 (B,H,K,V) or None; ValueError in the name of the op."""
    if q.dim() != 4 or q.shape != k.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"{name} needs q and k (B,T,H,K) and v (B,T,H,V), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    state = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    if s0 is not None and s0.shape != state:
        raise ValueError(f"{name} needs s0 of shape {state}, got {tuple(s0.shape)}")


def check_flags(name: str, q: Tensor, mask: Tensor | None, resets: Tensor | None) -> None:
    """mask and resets are (B,T) bool or None."""
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != q.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"{name} needs a bool {label} of shape {tuple(q.shape[:2])}, got {flags.dtype} {tuple(flags.shape)}"
            )


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any input is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def initial(q: Tensor, v: Tensor, s0: Tensor | None, work: torch.dtype) -> Tensor:
    """The state before the first step, (B,H,K,V)."""
    if s0 is not None:
        return s0.to(work)
    return q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=work)


def chunks(x: Tensor, size: int) -> Tensor:
    """(B,T,H,...) with T a multiple of ``size`` -> (B,H,N,C,...)"""
    return x.unflatten(1, (-1, size)).movedim(3, 1)


def spans(steps: int, size: int) -> list[tuple[slice, int]]:
    """The steps as whole chunks of ``size`` and one shorter chunk, as far as there are any: where, and how long chunks
    are there."""
    whole = steps - steps % size
    found = [(slice(0, whole), size), (slice(whole, steps), steps - whole)]
    return [(part, length) for part, length in found if part.start < part.stop]


def carry_over(state: Tensor, fades: Sequence[Tensor], written: Tensor) -> tuple[Tensor, Tensor]:
    """S_(n+1) = fade_n * S_n + written_n over chunks, ``written`` (B,H,N,K,V): the states that enter them, (B,H,N,K,V),
    and the one behind the last."""
    entering: list[Tensor] = []
    for fade, new in zip(fades, written.unbind(2)):
        entering.append(state)
        state = torch.addcmul(new, fade, state)
    return torch.stack(entering, 2), state


def cuts(resets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Resets that count: one at a masked step has no effect."""
    return resets if resets is None or mask is None else resets & mask


# ---------------------------------------------------------------- the compiled recurrence


@functools.cache
def _compiled() -> ModuleType:
    from . import matrix_state_numba  # imports numba

    return matrix_state_numba


@functools.cache
def _block(dtype: torch.dtype) -> int:
    from .tiles import block

    return block(dtype)


def why_not_compiled(q: Tensor, *others: Tensor) -> str | None:
    """None when the kernels can serve these tensors, else the reason. One step is cheaper without them."""
    reason = why_not_kernel(q, *others)
    if reason is None and q.dim() == 4 and (q.shape[1] < 2 or not q.numel()):
        return "a single step is cheaper as a recurrence"
    return reason


class _MatrixState(torch.autograd.Function):
    """Every step taken, forward and backward: q, k, v, the decays and one state a chunk are kept."""

    @staticmethod
    def forward(ctx, q, k, v, a, s0):  # noqa: ANN001, ANN205 (torch's own signature)
        y, state, kept = _compiled().forward(q, k, v, a, s0, keep=True)
        ctx.save_for_backward(q, k, v, a, kept)
        return y, state

    @staticmethod
    def backward(ctx, grad, last):  # noqa: ANN001, ANN205
        # With create_graph the result must refuse to be differentiated again; without, that costs for nothing.
        return _back_once(ctx, grad, last) if torch.is_grad_enabled() else _back(ctx, grad, last)


def _back(ctx, grad, last):  # noqa: ANN001, ANN202
    saved = ctx.saved_tensors
    dq, dk, dv, da, ds0 = _compiled().backward(saved, grad.contiguous(), last.contiguous(), ctx.needs_input_grad[3])
    if da is not None and saved[3].shape[3] == 1:
        da = da.sum(-1, keepdim=True)
    return dq, dk, dv, da, ds0


_back_once = once_differentiable(_back)


def compiled(q: Tensor, k: Tensor, v: Tensor, a: Tensor, s0: Tensor) -> tuple[Tensor, Tensor]:
    """y and the last state of S_t = diag(a_t) S_(t-1) + k_t v_t^T, y_t = S_t^T q_t, differentiable once.

    q, k (B,T,H,K), v (B,T,H,V), a (B,T,H,K) or (B,T,H,1) decays, s0 (B,H,K,V), all of one dtype, float32 or float64, on
    the CPU. Widths that do not fill a tile of the kernel are padded with zeros.
    """
    width, values = q.shape[3], v.shape[3]
    size = _block(q.dtype)
    more, more_values = -width % size, -values % size
    if more:
        q, k, s0 = F.pad(q, (0, more)), F.pad(k, (0, more)), F.pad(s0, (0, 0, 0, more))
        a = a if a.shape[3] == 1 else F.pad(a, (0, more))
    if more_values:
        v, s0 = F.pad(v, (0, more_values)), F.pad(s0, (0, more_values))
    q, k, v, a, s0 = (t.contiguous() for t in (q, k, v, a, s0))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, a, s0)):
        y, state = _MatrixState.apply(q, k, v, a, s0)
    else:
        y, state, _ = _compiled().forward(q, k, v, a, s0, keep=False)
    if more or more_values:
        y, state = y[..., :values], state[..., :width, :values]
    return y, state


# ---------------------------------------------------------------- the same on GPUs

_WIDEST = 256
"""Channels of the keys, beyond which a tile of them does not fit into the shared memory of a processor."""


@functools.cache
def _gpu() -> ModuleType:
    from . import matrix_state_triton  # imports triton

    return matrix_state_triton


def why_not_gpu(q: Tensor, *others: Tensor) -> str | None:
    """None when the Triton kernels can serve these tensors, else the reason."""
    reason = why_not_triton(q, *others)
    if reason is None and not q.numel():
        return "there is nothing to compute"
    if reason is None and q.shape[-1] > _WIDEST:
        return f"keys of {q.shape[-1]} channels are too wide for the kernel, which takes {_WIDEST}"
    return reason


class _Chunks(torch.autograd.Function):
    """The recurrence in chunks: q, k, v, the decays and one state a chunk are kept."""

    @staticmethod
    def forward(ctx, q, k, v, g, s0):  # noqa: ANN001, ANN205 (torch's own signature)
        a = g.exp()
        y, marks = _gpu().forward(q, k, v, a, s0)
        ctx.save_for_backward(q, k, v, a, marks)
        return y, marks[:, :, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, last):  # noqa: ANN001, ANN205
        return _gpu().backward(ctx.saved_tensors, grad.contiguous(), last.contiguous())


def on_gpu(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s0: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """What :func:`compiled` gives, for g = log(a), (B,T,H,K) or (B,T,H,1), and ``resets`` (B,T) or None, where a = 0."""
    if resets is not None:
        g = torch.where(resets[..., None, None], -torch.inf, g)
    return _Chunks.apply(*(x.contiguous() for x in (q, k, v, g, s0)))
