"""The compiled form of :mod:`transduce.ops.gated` under autograd."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tracing import why_not_kernel

_SERVED = (torch.float32, torch.float16, torch.bfloat16)


def why_not_fused(*tensors: Tensor) -> str | None:
    """Why the kernels cannot serve these tensors; None when they can."""
    reason = why_not_kernel(*tensors)
    if reason is None:
        for t in tensors:
            if t.dtype not in _SERVED and t.dtype != torch.bool:
                return f"the kernel computes in float32, a tensor is {t.dtype}"
    return reason


@functools.cache
def _kernels() -> ModuleType:
    from . import gated_numba  # imports numba

    return gated_numba


def run_fused(
    kind: str,
    width: int,
    inputs: tuple[Tensor | None, Tensor, Tensor | None, Tensor | None],
    h0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> Tensor:
    """The recurrence ``kind`` over ``inputs`` = (x, pre, first vector, second vector). ``width``: channels D."""
    x, pre, *_ = inputs
    dtype = (pre if x is None else x).dtype
    if h0 is not None:
        dtype = torch.promote_types(dtype, h0.dtype)
    work = [None if t is None else t.float().contiguous() for t in (*inputs, h0)]
    flags = [None if f is None else f.contiguous() for f in (mask, resets)]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in work):
        out = _Fused.apply(kind, width, *flags, *work)
    else:
        out = _kernels().forward(kind, width, work, flags)
    return out if out.dtype == dtype else out.to(dtype)


class _Fused(torch.autograd.Function):
    """Nothing but the outputs is kept: the backward kernel computes the gates again, which costs less than
    reading them."""

    @staticmethod
    def forward(ctx, kind, width, mask, resets, *work):  # noqa: ANN001, ANN205 (torch's own signature)
        h = _kernels().forward(kind, width, work, (mask, resets))
        ctx.save_for_backward(h, mask, resets, *work)
        ctx.kind, ctx.width = kind, width
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        h, mask, resets, *work = ctx.saved_tensors
        found = _kernels().backward(ctx.kind, ctx.width, grad.contiguous(), h, work, (mask, resets))
        wanted = ctx.needs_input_grad[4:]
        return None, None, None, None, *(g if want else None for g, want in zip(found, wanted))
