"""Kernels of :func:`transduce.ops.diagonal_scan`. A thread owns whole (batch row, block of channels) strips; the decays
of a strip and the state before a step stay in the first-level cache. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise

_STRIP_BYTES = 1024
"""No narrower strips than this: two threads on halves of a short row would fetch each other's lines."""


def _real(a: Lanes, b: Lanes, before: Lanes) -> tuple[Lanes]:
    return (a * before + b,)


def _complex(a_re: Lanes, a_im: Lanes, b_re: Lanes, b_im: Lanes, re: Lanes, im: Lanes) -> tuple[Lanes, Lanes]:
    return a_re * re - a_im * im + b_re, a_re * im + a_im * re + b_im


def _real_back(grad: Lanes, a: Lanes, before: Lanes, carry: Lanes, da: Lanes) -> tuple[Lanes, ...]:
    """db, the carry of the step before, and the gradient of the decay so far."""
    u = grad + carry
    return u, u * a, da + u * before


def _complex_back(*rows: Lanes) -> tuple[Lanes, ...]:
    """The same for grad, a, before, carry and da in two planes each, and results in two planes each."""
    g_re, g_im, a_re, a_im, re, im, c_re, c_im, da_re, da_im = rows
    u_re, u_im = g_re + c_re, g_im + c_im
    return (
        u_re,
        u_im,
        a_re * u_re + a_im * u_im,
        a_re * u_im - a_im * u_re,
        da_re + u_re * re + u_im * im,
        da_im + u_im * re - u_re * im,
    )


_step_real, _step_complex = lanewise(_real, inputs=3), lanewise(_complex, inputs=6)
_back_real = lanewise(_real_back, inputs=5, falling=True)
_back_complex = lanewise(_complex_back, inputs=10, falling=True)


def _forward(data) -> None:  # noqa: ANN001
    """tensors decay, b, h0, out, mask, resets; sizes batch, steps, planes, width, blocks, threads."""
    batch, steps, planes, width = as_size(data[6]), as_size(data[7]), as_size(data[8]), as_size(data[9])
    blocks, threads = as_size(data[10]), as_size(data[11])
    decay = carray(data[0], (planes, width))
    b = carray(data[1], (batch, steps, planes, width))
    h0 = carray(data[2], (batch, planes, width))
    out = carray(data[3], (batch, steps, planes, width))
    has_mask, has_resets = as_size(data[4]) != 0, as_size(data[5]) != 0
    mask = carray(as_bytes(data[4]), (batch, steps))
    resets = carray(as_bytes(data[5]), (batch, steps))
    jobs, me, last = batch * blocks, thread_number(), planes - 1
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        re, im = h0[row, 0, lo:hi], h0[row, last, lo:hi]
        for t in range(steps):
            now_re, now_im = out[row, t, 0, lo:hi], out[row, t, last, lo:hi]
            if has_mask and not mask[row, t]:
                now_re[:] = re
                now_im[:] = im
            elif has_resets and resets[row, t]:
                now_re[:] = b[row, t, 0, lo:hi]
                now_im[:] = b[row, t, last, lo:hi]
            elif planes == 1:
                _step_real((decay[0, lo:hi], b[row, t, 0, lo:hi], re, now_re))
            else:
                _step_complex(
                    (
                        decay[0, lo:hi],
                        decay[1, lo:hi],
                        b[row, t, 0, lo:hi],
                        b[row, t, 1, lo:hi],
                        re,
                        im,
                        now_re,
                        now_im,
                    )
                )
            re, im = now_re, now_im


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, decay, h, h0, ddecay (B,P,N), db, dh0, mask, resets; sizes as forward."""
    batch, steps, planes, width = as_size(data[9]), as_size(data[10]), as_size(data[11]), as_size(data[12])
    blocks, threads = as_size(data[13]), as_size(data[14])
    grad = carray(data[0], (batch, steps, planes, width))
    decay = carray(data[1], (planes, width))
    h = carray(data[2], (batch, steps, planes, width))
    h0 = carray(data[3], (batch, planes, width))
    ddecay = carray(data[4], (batch, planes, width))
    db = carray(data[5], (batch, steps, planes, width))
    dh0 = carray(data[6], (batch, planes, width))
    has_mask, has_resets = as_size(data[7]) != 0, as_size(data[8]) != 0
    mask = carray(as_bytes(data[7]), (batch, steps))
    resets = carray(as_bytes(data[8]), (batch, steps))
    jobs, me, last = batch * blocks, thread_number(), planes - 1
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        c_re, c_im = dh0[row, 0, lo:hi], dh0[row, last, lo:hi]  # what the steps behind say of the state
        da_re, da_im = ddecay[row, 0, lo:hi], ddecay[row, last, lo:hi]
        for i in range(hi - lo):
            c_re[i] = c_im[i] = da_re[i] = da_im[i] = 0
        for t in range(steps - 1, -1, -1):
            g_re, g_im = grad[row, t, 0, lo:hi], grad[row, t, last, lo:hi]
            u_re, u_im = db[row, t, 0, lo:hi], db[row, t, last, lo:hi]
            if has_mask and not mask[row, t]:
                for i in range(hi - lo):
                    c_re[i] += g_re[i]
                    if planes == 2:
                        c_im[i] += g_im[i]
                    u_re[i] = u_im[i] = 0
            elif has_resets and resets[row, t]:
                for i in range(hi - lo):
                    u_re[i] = g_re[i] + c_re[i]
                    if planes == 2:
                        u_im[i] = g_im[i] + c_im[i]
                for i in range(hi - lo):
                    c_re[i] = c_im[i] = 0
            else:
                re, im = h0[row, 0, lo:hi], h0[row, last, lo:hi]
                if t > 0:
                    re, im = h[row, t - 1, 0, lo:hi], h[row, t - 1, last, lo:hi]
                a_re, a_im = decay[0, lo:hi], decay[last, lo:hi]
                if planes == 1:
                    _back_real((g_re, a_re, re, c_re, da_re, u_re, c_re, da_re))
                else:
                    _back_complex(
                        (
                            g_re,
                            g_im,
                            a_re,
                            a_im,
                            re,
                            im,
                            c_re,
                            c_im,
                            da_re,
                            da_im,
                            u_re,
                            u_im,
                            c_re,
                            c_im,
                            da_re,
                            da_im,
                        )
                    )


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(b: Tensor) -> list[int]:
    """Sizes of a launch: the shape of b, into how many blocks the channels are cut so that every thread gets the same
    number of strips, and the threads."""
    batch, _, _, width = b.shape
    threads = threads_for(b.numel())
    blocks = min(threads // math.gcd(batch, threads), max(1, width * b.element_size() // _STRIP_BYTES))
    return [*b.shape, blocks, min(threads, batch * blocks)]


def forward(decay: Tensor, b: Tensor, h0: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """All arguments contiguous and of one dtype: (P,N), (B,T,P,N), (B,P,N), (B,T), (B,T)."""
    out = torch.empty_like(b)
    if out.numel():
        sizes = _plan(b)
        _forward_kernel.launch(b.dtype, (decay, b, h0, out, mask, resets), sizes, sizes[-1])
    return out


def backward(
    grad: Tensor, decay: Tensor, h: Tensor, h0: Tensor, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decay, b and h0. That of the decays is summed over time row by row, then over rows."""
    db, dh0, ddecay = torch.empty_like(grad), torch.empty_like(h0), torch.empty_like(h0)
    if grad.numel():
        sizes = _plan(grad)
        tensors = (grad, decay, h, h0, ddecay, db, dh0, mask, resets)
        _backward_kernel.launch(grad.dtype, tensors, sizes, sizes[-1])
    else:
        dh0.zero_()
        ddecay.zero_()
    return ddecay.sum(0), db, dh0
