"""Small parts of :mod:`transduce.ops.rnn`: one step of a GRU as one node of the autograd graph, and which heads the
kernels for GPUs serve."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tracing import why_not_triton

_SHARED = 200 << 10
"""Bytes of shared memory that the kernels take for heads of 64 channels, backward; heads of 32 take a quarter."""


def why_not_gpu(pre: Tensor, weight: Tensor, *others: Tensor) -> str | None:
    """None when the Triton kernels can serve these tensors, else the reason."""
    reason, width = why_not_triton(pre, weight, *others), weight.shape[-1]
    if reason is None and width > 32:
        room = torch.cuda.get_device_properties(pre.device).shared_memory_per_block_optin if pre.is_cuda else _SHARED
        widest = 64 if room >= _SHARED and pre.dtype != torch.float64 else 32
        if width > widest:
            return f"heads of {width} channels: a program holds the recurrent weights of at most {widest}"
    return reason


class GRUGates(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.gru_gates`."""

    @staticmethod
    def forward(ctx, pre, recurrent, h):  # noqa: ANN001, ANN205
        width = h.shape[1]
        inner = recurrent[:, 2 * width :]
        r, z = (pre[:, : 2 * width] + recurrent[:, : 2 * width]).sigmoid_().split(width, 1)
        n = torch.addcmul(pre[:, 2 * width :], r, inner).tanh_()
        ctx.save_for_backward(r, z, n, inner, h)
        return torch.lerp(n, h, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        r, z, n, inner, h = ctx.saved_tensors
        dh = grad * z
        dn = (grad - dh).mul_(1 - n * n)
        d_inner = dn * r
        dr = (1 - r).mul_(d_inner).mul_(inner)
        dz = (h - n).mul_(dh).mul_(1 - z)
        return torch.cat((dr, dz, dn), 1), torch.cat((dr, dz, d_inner), 1), dh
