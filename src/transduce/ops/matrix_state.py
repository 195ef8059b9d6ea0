"""What the ops with a matrix state share: checks of their arguments, the precision they work in, pieces of time, and the
compiled recurrence S_t = diag(a_t) S_(t-1) + k_t v_t^T, y_t = S_t^T q_t with its analytic backward."""

from __future__ import annotations

import torch
from torch import Tensor


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
                f"{name} needs a bool {label} of shape {tuple(q.shape[:2])}, "
                f"got {flags.dtype} {tuple(flags.shape)}"
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


def cuts(resets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Resets that count: one at a masked step has no effect."""
    return resets if resets is None or mask is None else resets & mask
