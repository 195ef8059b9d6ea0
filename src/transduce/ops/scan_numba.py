"""Kernels of :func:`transduce.ops.linear_scan`: one pass over the data, rows of channels in the inner loop.

A thread owns whole (batch row, block of channels) strips, so no two threads share a carry, and the carry of a
strip is the row it wrote last, which is still in the first-level cache. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise

_STRIP_BYTES = 1024
"""A row is cut into strips no narrower than this. Two threads on halves of a shorter row fetch each other's
lines: measured on two cores, one thread is twice as fast at 64 channels."""


def _step(a: Lanes, b: Lanes, before: Lanes) -> tuple[Lanes]:
    return (a * before + b,)


def _step_back(grad: Lanes, a: Lanes, before: Lanes, carry: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """da, db and the carry of the step before."""
    u = grad + carry
    return u * before.conj(), u, u * a.conj()


_step_up, _step_down = lanewise(_step, inputs=3), lanewise(_step, inputs=3, falling=True)
_back_up, _back_down = lanewise(_step_back, inputs=4), lanewise(_step_back, inputs=4, falling=True)


def _forward(data) -> None:  # noqa: ANN001
    """tensors a, b, h0, out, resets; sizes batch, steps, width, blocks, threads, reverse."""
    batch, steps, width = as_size(data[5]), as_size(data[6]), as_size(data[7])
    blocks, threads, reverse = as_size(data[8]), as_size(data[9]), as_size(data[10])
    a = carray(data[0], (batch, steps, width))
    b = carray(data[1], (batch, steps, width))
    h0 = carray(data[2], (batch, width))
    out = carray(data[3], (batch, steps, width))
    has_resets = as_size(data[4]) != 0
    resets = carray(as_bytes(data[4]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        before = h0[row, lo:hi]
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            now = out[row, t, lo:hi]
            if has_resets and resets[row, t]:
                now[:] = b[row, t, lo:hi]
            elif reverse:
                _step_down((a[row, t, lo:hi], b[row, t, lo:hi], before, now))
            else:
                _step_up((a[row, t, lo:hi], b[row, t, lo:hi], before, now))
            before = now


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, a, h, h0, da, db, dh0, resets; sizes batch, steps, width, blocks, threads, reverse, steps
    kept of da and of db (``steps``, or 1 where that gradient is not wanted and one scratch row is enough)."""
    batch, steps, width = as_size(data[8]), as_size(data[9]), as_size(data[10])
    blocks, threads, reverse = as_size(data[11]), as_size(data[12]), as_size(data[13])
    kept_a, kept_b = as_size(data[14]), as_size(data[15])
    grad = carray(data[0], (batch, steps, width))
    a = carray(data[1], (batch, steps, width))
    h = carray(data[2], (batch, steps, width))
    h0 = carray(data[3], (batch, width))
    da = carray(data[4], (batch, kept_a, width))
    db = carray(data[5], (batch, kept_b, width))
    dh0 = carray(data[6], (batch, width))
    has_resets = as_size(data[7]) != 0
    resets = carray(as_bytes(data[7]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        carry = dh0[row, lo:hi]
        carry[:] = 0
        for s in range(steps - 1, -1, -1):
            t = steps - 1 - s if reverse else s
            before = h0[row, lo:hi]
            if s > 0:
                before = h[row, t + 1 if reverse else t - 1, lo:hi]
            da_now, db_now = da[row, t % kept_a, lo:hi], db[row, t % kept_b, lo:hi]
            rows = (grad[row, t, lo:hi], a[row, t, lo:hi], before, carry, da_now, db_now, carry)
            if reverse:
                _back_up(rows)
            else:
                _back_down(rows)
            if has_resets and resets[row, t]:
                da_now[:] = 0
                carry[:] = 0


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(a: Tensor) -> tuple[int, int]:
    """Into how many blocks the channels are cut so that every thread gets the same number of strips, and the
    threads."""
    batch, _, width = a.shape
    threads = threads_for(a.numel())
    blocks = min(threads // math.gcd(batch, threads), max(1, width * a.element_size() // _STRIP_BYTES))
    return blocks, min(threads, batch * blocks)


def forward(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    """All arguments contiguous, of one dtype and full shape: (B,T,D), (B,T,D), (B,D), (B,T)."""
    out = torch.empty_like(b)
    if out.numel():
        blocks, threads = _plan(a)
        sizes = [*a.shape, blocks, threads, int(reverse)]
        _forward_kernel.launch(a.dtype, (a, b, h0, out, resets), sizes, threads)
    return out


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0 from ``saved`` = (a, h, h0); of a and b only where ``wanted``, else
    scratch."""
    a, h, h0 = saved
    batch, steps, width = a.shape
    da, db = (torch.empty_like(a) if want else a.new_empty((batch, 1, width)) for want in wanted)
    dh0 = torch.empty_like(h0)  # the kernel sets it to zero first
    if not a.numel():
        dh0.zero_()
    else:
        blocks, threads = _plan(a)
        sizes = [batch, steps, width, blocks, threads, int(reverse), da.shape[1], db.shape[1]]
        _backward_kernel.launch(a.dtype, (grad, a, h, h0, da, db, dh0, resets), sizes, threads)
    return da, db, dh0
