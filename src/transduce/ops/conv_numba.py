"""Kernels of :func:`transduce.ops.conv.causal_conv` with few taps, each channel on its own: one pass over memory.

torch's own backward of such a convolution is far slower than its forward, and tap by tap every tap is a pass over
memory with a temporary of its own. Here a row and its few predecessors stay in the first-level cache. Threads own
(batch row, block of channels) strips, as in :mod:`transduce.ops.scan_numba`. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import numba
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import Kernel, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise

_STRIP_BYTES = 1024
_always = numba.njit(inline="always")


def _multiply_add(total: Lanes, a: Lanes, b: Lanes) -> tuple[Lanes]:
    return (total + a * b,)


_add_product = lanewise(_multiply_add, inputs=3)
_add = lanewise(lambda total, a: (total + a,), inputs=2)


@_always
def _strip(data, first, batch, width):  # noqa: ANN001, ANN202
    """Of this thread: the jobs from .. to, and into how many blocks channels are cut. ``first``: where blocks and
    threads stand."""
    blocks, threads, me = as_size(data[first]), as_size(data[first + 1]), thread_number()
    return batch * blocks * me // threads, batch * blocks * (me + 1) // threads, blocks


def _forward(data) -> None:  # noqa: ANN001
    """tensors x (B,T,D), weight (K,D), bias (D), tail (B,L,D), y; sizes batch, steps, width, taps, dilation, blocks,
    threads."""
    batch, steps, width = as_size(data[5]), as_size(data[6]), as_size(data[7])
    taps, dilation = as_size(data[8]), as_size(data[9])
    reach = (taps - 1) * dilation
    x, y = carray(data[0], (batch, steps, width)), carray(data[4], (batch, steps, width))
    weight, bias = carray(data[1], (taps, width)), carray(data[2], (width,))
    tail = carray(data[3], (batch, reach, width))
    begin, end, blocks = _strip(data, 10, batch, width)
    for job in range(begin, end):
        b, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        for t in range(steps):
            now = y[b, t, lo:hi]
            now[:] = bias[lo:hi]
            for k in range(taps):
                at = t + k * dilation
                seen = x[b, at - reach, lo:hi] if at >= reach else tail[b, at, lo:hi]
                _add_product((now, seen, weight[k, lo:hi], now))


def _backward(data) -> None:  # noqa: ANN001
    """tensors x, weight, tail, grad, dx, dweight (B,K,D), dbias (B,D), dtail, the last four zero; sizes as for the
    forward kernel."""
    batch, steps, width = as_size(data[8]), as_size(data[9]), as_size(data[10])
    taps, dilation = as_size(data[11]), as_size(data[12])
    reach = (taps - 1) * dilation
    x, dx = carray(data[0], (batch, steps, width)), carray(data[4], (batch, steps, width))
    weight, grad = carray(data[1], (taps, width)), carray(data[3], (batch, steps, width))
    tail, dtail = carray(data[2], (batch, reach, width)), carray(data[7], (batch, reach, width))
    dweight, dbias = carray(data[5], (batch, taps, width)), carray(data[6], (batch, width))
    begin, end, blocks = _strip(data, 13, batch, width)
    for job in range(begin, end):
        b, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        for t in range(steps):
            now = grad[b, t, lo:hi]
            _add((dbias[b, lo:hi], now, dbias[b, lo:hi]))
            for k in range(taps):
                at = t + k * dilation
                seen = x[b, at - reach, lo:hi] if at >= reach else tail[b, at, lo:hi]
                back = dx[b, at - reach, lo:hi] if at >= reach else dtail[b, at, lo:hi]
                _add_product((back, now, weight[k, lo:hi], back))
                of_tap = dweight[b, k, lo:hi]
                _add_product((of_tap, now, seen, of_tap))


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _sizes(x: Tensor, weight: Tensor, dilation: int) -> list[int]:
    """Sizes of a launch, blocks and threads at the end; ``weight`` (K,D)."""
    batch, steps, width = x.shape
    threads = threads_for(x.numel() * len(weight))
    blocks = min(threads // math.gcd(batch, threads), max(1, width * x.element_size() // _STRIP_BYTES))
    return [batch, steps, width, len(weight), dilation, blocks, min(threads, batch * blocks)]


class DepthwiseConv(torch.autograd.Function):
    """y of x (B,T,D), taps (K,D), bias (D) and tail (B,L,D), all contiguous and of one dtype; T, B and D at least
    1."""

    @staticmethod
    def forward(ctx, x, taps, bias, tail, dilation):  # noqa: ANN001, ANN205 (torch's own signature)
        y, sizes = torch.empty_like(x), _sizes(x, taps, dilation)
        _forward_kernel.launch(x.dtype, (x, taps, bias, tail, y), sizes, sizes[-1])
        ctx.save_for_backward(x, taps, tail)
        ctx.dilation = dilation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        x, taps, tail = ctx.saved_tensors
        sizes = _sizes(x, taps, ctx.dilation)
        dx, dtail = torch.zeros_like(x), torch.zeros_like(tail)
        dtaps, dbias = x.new_zeros(len(x), *taps.shape), x.new_zeros(len(x), x.shape[2])
        tensors = (x, taps, tail, grad.contiguous(), dx, dtaps, dbias, dtail)
        _backward_kernel.launch(x.dtype, tensors, sizes, sizes[-1])
        return dx, dtaps.sum(0), dbias.sum(0), dtail, None
