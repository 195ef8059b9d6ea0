"""Triton kernels of :func:`transduce.ops.diagonal_scan`: the walk of ``scan_triton`` with one decay a channel.

Imports triton; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .diagonal_scan import _times
from .scan_triton import Walk


def _lines(x: Tensor) -> Tensor:
    """(..., P, N) as (..., 1, N, P)."""
    return x.mT.unsqueeze(-3)


def forward(decay: Tensor, b: Tensor, h0: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """All arguments contiguous and of one dtype: (P,N), (B,T,P,N), (B,P,N), (B,T), (B,T)."""
    return Walk(mask=mask, resets=resets)(_lines(decay), _lines(b), _lines(h0)).squeeze(-3).mT


def backward(
    grad: Tensor, decay: Tensor, h: Tensor, h0: Tensor, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decay, b and h0."""
    if not h.numel():
        return torch.zeros_like(decay), torch.zeros_like(h), torch.zeros_like(h0)
    u = Walk(mask=mask, resets=resets).gradients(_lines(decay), _lines(grad)).squeeze(-3).mT
    conj = torch.cat((decay[:1], -decay[1:]))
    into_first, passed = _times(conj, u[:, 0]), torch.cat((h0[:, None], h[:, :-1]), 1)
    db = u
    if resets is not None:
        passed = torch.where(resets[..., None, None], 0, passed)
        into_first = torch.where(resets[:, 0, None, None], 0, into_first)
    if mask is not None:
        db = torch.where(mask[..., None, None], u, 0)
        into_first = torch.where(mask[:, 0, None, None], into_first, u[:, 0])
    passed = torch.cat((passed[:, :, :1], -passed[:, :, 1:]), 2)
    return _times(db, passed).sum((0, 1)), db, into_first
