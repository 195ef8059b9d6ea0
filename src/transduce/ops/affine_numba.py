"""Kernel of :func:`transduce.ops.affine.affine_scan` for two numbers a channel: one pass, a row of channels in the
inner loop. A thread owns whole strips (batch row, block of channels). Imports numba; import it lazily."""

from __future__ import annotations

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise

_STRIP = 128
"""Channels that a strip has at least; narrower ones would share cache lines."""


def _step(a: Lanes, b: Lanes, c: Lanes, d: Lanes, x: Lanes, y: Lanes, p: Lanes, q: Lanes) -> tuple[Lanes, Lanes]:
    return a * p + b * q + x, c * p + d * q + y


_up, _down = lanewise(_step, inputs=8), lanewise(_step, inputs=8, falling=True)


def _scan(data) -> None:  # noqa: ANN001
    """tensors a (B,T,2,2,D), b (B,T,2,D), h0 (B,2,D), out (B,T,2,D); sizes B, T, D, blocks, threads, reverse."""
    batch, steps, width = as_size(data[4]), as_size(data[5]), as_size(data[6])
    blocks, threads, reverse = as_size(data[7]), as_size(data[8]), as_size(data[9])
    a, b = carray(data[0], (batch, steps, 4, width)), carray(data[1], (batch, steps, 2, width))
    h0, out = carray(data[2], (batch, 2, width)), carray(data[3], (batch, steps, 2, width))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        p, q = h0[row, 0, lo:hi], h0[row, 1, lo:hi]
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            m, x, now = a[row, t], b[row, t], out[row, t]
            rows = (
                m[0, lo:hi], m[1, lo:hi], m[2, lo:hi], m[3, lo:hi],
                x[0, lo:hi], x[1, lo:hi], p, q, now[0, lo:hi], now[1, lo:hi],
            )  # fmt: skip
            if reverse:
                _down(rows)
            else:
                _up(rows)
            p, q = now[0, lo:hi], now[1, lo:hi]


_kernel = Kernel(_scan)


def scan(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    a, b, h0 = a.contiguous(), b.contiguous(), h0.contiguous()
    batch, steps, _, width = b.shape
    out = torch.empty_like(b)
    threads = threads_for(4 * b.numel())
    blocks = max(1, min(-(-threads // batch), width // _STRIP)) if batch < threads else 1
    threads = min(threads, batch * blocks)
    _kernel.launch(b.dtype, (a, b, h0, out), (batch, steps, width, blocks, threads, int(reverse)), threads)
    return out
