"""Kernels of :func:`transduce.ops.block_scan.block_scan`: one pass over the data, a kernel for each size of blocks.

With the size known while compiling, the loops over a block are unrolled and its state stays in registers. A thread owns
whole (batch row, range of blocks) strips and walks each of them through time. Imports numba; import it lazily.
"""

from __future__ import annotations

import functools
import math

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for


@functools.cache
def _kernels(size: int) -> tuple[Kernel, Kernel]:
    """Forward and backward for blocks of ``size`` by ``size``."""

    def forward(data) -> None:  # noqa: ANN001
        """tensors a, v, h0, out, mask, resets; sizes batch, steps, heads, parts, threads."""
        batch, steps, heads = as_size(data[6]), as_size(data[7]), as_size(data[8])
        parts, threads = as_size(data[9]), as_size(data[10])
        a = carray(data[0], (batch, steps, heads, size, size))
        v = carray(data[1], (batch, steps, heads, size))
        h0 = carray(data[2], (batch, heads, size))
        out = carray(data[3], (batch, steps, heads, size))
        has_v, has_mask, has_resets = as_size(data[1]) != 0, as_size(data[4]) != 0, as_size(data[5]) != 0
        mask = carray(as_bytes(data[4]), (batch, steps))
        resets = carray(as_bytes(data[5]), (batch, steps))
        zero = h0.dtype.type(0)
        jobs, me = batch * parts, thread_number()
        for job in range(jobs * me // threads, jobs * (me + 1) // threads):
            row, part = job // parts, job % parts
            for t in range(steps):
                waits = has_mask and not mask[row, t]
                begins = has_resets and resets[row, t] != 0
                for k in range(heads * part // parts, heads * (part + 1) // parts):
                    before = out[row, t - 1, k] if t > 0 else h0[row, k]
                    now = out[row, t, k]
                    if waits:
                        for i in range(size):
                            now[i] = before[i]
                        continue
                    for i in range(size):
                        total = v[row, t, k, i] if has_v else zero
                        if not begins:
                            line = a[row, t, k, i]
                            for j in range(size):
                                total += line[j] * before[j]
                        now[i] = total

    def backward(data) -> None:  # noqa: ANN001
        """tensors grad, a, h, h0, da, dv, dh0, mask, resets; sizes batch, steps, heads, parts, threads, steps kept
        of da and of dv (``steps``, or 1 where that gradient is not wanted and one step of scratch is enough)."""
        batch, steps, heads = as_size(data[9]), as_size(data[10]), as_size(data[11])
        parts, threads, kept_a, kept_v = as_size(data[12]), as_size(data[13]), as_size(data[14]), as_size(data[15])
        grad = carray(data[0], (batch, steps, heads, size))
        a = carray(data[1], (batch, steps, heads, size, size))
        h = carray(data[2], (batch, steps, heads, size))
        h0 = carray(data[3], (batch, heads, size))
        da = carray(data[4], (batch, kept_a, heads, size, size))
        dv = carray(data[5], (batch, kept_v, heads, size))
        dh0 = carray(data[6], (batch, heads, size))
        has_mask, has_resets = as_size(data[7]) != 0, as_size(data[8]) != 0
        mask = carray(as_bytes(data[7]), (batch, steps))
        resets = carray(as_bytes(data[8]), (batch, steps))
        jobs, me = batch * parts, thread_number()
        for job in range(jobs * me // threads, jobs * (me + 1) // threads):
            row, part = job // parts, job % parts
            lo, hi = heads * part // parts, heads * (part + 1) // parts
            dh0[row, lo:hi] = 0
            for s in range(steps):
                t = steps - 1 - s
                waits = has_mask and not mask[row, t]
                begins = has_resets and resets[row, t] != 0
                for k in range(lo, hi):
                    carry, u, du = dh0[row, k], dv[row, t % kept_v, k], da[row, t % kept_a, k]
                    before = h[row, t - 1, k] if t > 0 else h0[row, k]
                    if waits:
                        u[:] = 0
                        du[:] = 0
                        for i in range(size):
                            carry[i] += grad[row, t, k, i]
                        continue
                    for i in range(size):
                        u[i] = grad[row, t, k, i] + carry[i]
                        carry[i] = 0
                    if begins:
                        du[:] = 0
                        continue
                    for i in range(size):
                        here = u[i]
                        line, slope = a[row, t, k, i], du[i]
                        for j in range(size):
                            slope[j] = here * before[j]
                        for j in range(size):
                            carry[j] += line[j] * here

    return Kernel(forward), Kernel(backward)


def _plan(a: Tensor) -> tuple[int, int]:
    """Into how many ranges the blocks are cut so that every thread gets the same number of strips; the threads."""
    batch, _, heads, _, _ = a.shape
    threads = threads_for(a.numel())
    parts = min(threads // math.gcd(batch, threads), heads)
    return parts, min(threads, batch * parts)


def forward(a: Tensor, v: Tensor | None, h0: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """All arguments contiguous and of one dtype: (B,T,H,b,b), (B,T,H,b), (B,H,b), (B,T), (B,T)."""
    out = a.new_empty(a.shape[:4])
    if out.numel():
        parts, threads = _plan(a)
        kernel, _ = _kernels(a.shape[-1])
        kernel.launch(a.dtype, (a, v, h0, out, mask, resets), [*a.shape[:3], parts, threads], threads)
    return out


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    flags: tuple[Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, v and h0 from ``saved`` = (a, h, h0) and ``flags`` = (mask, resets); of a and v only where
    ``wanted``, else scratch."""
    a, h, h0 = saved
    batch, steps, *rest = a.shape
    da = torch.empty_like(a) if wanted[0] else a.new_empty((batch, 1, *rest))
    dv = torch.empty_like(h) if wanted[1] else a.new_empty((batch, 1, *rest[:2]))
    dh0 = torch.empty_like(h0)  # the kernel sets it to zero first
    if not h.numel():
        dh0.zero_()
    else:
        parts, threads = _plan(a)
        sizes = [*a.shape[:3], parts, threads, da.shape[1], dv.shape[1]]
        _, kernel = _kernels(a.shape[-1])
        kernel.launch(a.dtype, (grad, a, h, h0, da, dv, dh0, *flags), sizes, threads)
    return da, dv, dh0
