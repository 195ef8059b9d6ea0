"""Kernels of the short depthwise :func:`transduce.ops.causal_conv`: every input is read once from memory, its taps from
the first-level cache. A thread owns some channels of some batch rows. Imports numba; import it lazily.
"""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from .kernels import Kernel, as_size, thread_number, threads_for
from .vectors import lanes_of, load, load_one, spread, store

_STRIP = 256
"""Channels of a strip, a multiple of every vector's length."""
_inline = numba.njit(fastmath={"contract"}, error_model="numpy", inline="always")


def _make_forward(load_some):  # noqa: ANN001, ANN202
    @_inline
    def step(x, weight, bias, tail, y, at, sizes):  # noqa: ANN001, ANN202
        row, t, d = at
        steps, width, taps, dilation = sizes
        reach = (taps - 1) * dilation
        out = load_some(bias, d)
        for j in range(taps):
            s = t - reach + j * dilation
            if s >= 0:
                seen = load_some(x, (row * steps + s) * width + d)
            else:
                seen = load_some(tail, (row * reach + reach + s) * width + d)
            out = out + load_some(weight, j * width + d) * seen
        store(y, (row * steps + t) * width + d, out)

    return step


_forward_many, _forward_one = _make_forward(load), _make_forward(load_one)


def _forward(data) -> None:  # noqa: ANN001
    """tensors x (B,T,D), weight (k,D), bias (D), tail (B,L,D), y (B,T,D); sizes B, T, D, k, dilation, threads."""
    x, weight, bias, tail, y = data[0], data[1], data[2], data[3], data[4]
    batch, steps, width = as_size(data[5]), as_size(data[6]), as_size(data[7])
    taps, dilation, threads = as_size(data[8]), as_size(data[9]), as_size(data[10])
    sizes, lanes, me = (steps, width, taps, dilation), lanes_of(x), thread_number()
    strips = (width + _STRIP - 1) // _STRIP
    jobs = batch * strips
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // strips, job % strips * _STRIP
        hi = min(width, lo + _STRIP)
        whole = lo + (hi - lo) // lanes * lanes
        for t in range(steps):
            for d in range(lo, whole, lanes):
                _forward_many(x, weight, bias, tail, y, (row, t, d), sizes)
            for d in range(whole, hi):
                _forward_one(x, weight, bias, tail, y, (row, t, d), sizes)


def _make_backward(load_some):  # noqa: ANN001, ANN202
    """What input ``s`` (negative: of the tail) gets from the outputs that read it, and gives to their weights."""

    @_inline
    def step(arrays, at, sizes):  # noqa: ANN001, ANN202
        x, weight, tail, dy, dx, dtail, dweight = arrays
        row, s, d = at
        steps, width, taps, dilation = sizes
        reach = (taps - 1) * dilation
        if s >= 0:
            seen = load_some(x, (row * steps + s) * width + d)
        else:
            seen = load_some(tail, (row * reach + reach + s) * width + d)
        out = spread(seen, 0)
        for j in range(taps):
            t = s + reach - j * dilation
            if t >= 0 and t < steps:
                g = load_some(dy, (row * steps + t) * width + d)
                k = (row * (taps + 1) + j) * width + d
                out = out + load_some(weight, j * width + d) * g
                store(dweight, k, load_some(dweight, k) + g * seen)
        if s >= 0:
            k = (row * (taps + 1) + taps) * width + d
            store(dweight, k, load_some(dweight, k) + load_some(dy, (row * steps + s) * width + d))
            store(dx, (row * steps + s) * width + d, out)
        else:
            store(dtail, (row * reach + reach + s) * width + d, out)

    return step


_backward_many, _backward_one = _make_backward(load), _make_backward(load_one)


def _backward(data) -> None:  # noqa: ANN001
    """tensors x (B,T,D), weight (k,D), tail (B,L,D), dy, dx (B,T,D), dtail (B,L,D), dweight (B,k+1,D; zeros at first,
    the bias last); sizes B, T, D, k, dilation, threads."""
    x, weight, tail, dy, dx, dtail, dweight = data[0], data[1], data[2], data[3], data[4], data[5], data[6]
    arrays = (x, weight, tail, dy, dx, dtail, dweight)
    batch, steps, width = as_size(data[7]), as_size(data[8]), as_size(data[9])
    taps, dilation, threads = as_size(data[10]), as_size(data[11]), as_size(data[12])
    sizes, lanes, me = (steps, width, taps, dilation), lanes_of(x), thread_number()
    strips = (width + _STRIP - 1) // _STRIP
    jobs = batch * strips
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // strips, job % strips * _STRIP
        hi = min(width, lo + _STRIP)
        whole = lo + (hi - lo) // lanes * lanes
        for s in range(-(taps - 1) * dilation, steps):
            for d in range(lo, whole, lanes):
                _backward_many(arrays, (row, s, d), sizes)
            for d in range(whole, hi):
                _backward_one(arrays, (row, s, d), sizes)


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _sizes(x: Tensor, taps: int, dilation: int) -> tuple[list[int], int]:
    batch, steps, width = x.shape
    threads = min(threads_for(x.numel()), batch * -(-width // _STRIP))
    return [batch, steps, width, taps, dilation, threads], threads


def forward(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, dilation: int) -> Tensor:
    """x (B,T,D), weight (k,D) in rows of one tap, bias (D), tail (B,L,D), all contiguous -> y (B,T,D)."""
    y = torch.empty_like(x)
    sizes, threads = _sizes(x, len(weight), dilation)
    _forward_kernel.launch(x.dtype, (x, weight, bias, tail, y), sizes, threads)
    return y


def backward(
    x: Tensor, weight: Tensor, tail: Tensor, dilation: int, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight (k,D), bias and tail."""
    dx, dtail = torch.empty_like(x), torch.empty_like(tail)
    dweight = x.new_zeros(len(x), len(weight) + 1, x.shape[2])
    sizes, threads = _sizes(x, len(weight), dilation)
    _backward_kernel.launch(x.dtype, (x, weight, tail, dy, dx, dtail, dweight), sizes, threads)
    dweight = dweight.sum(0)
    return dx, dweight[:-1], dweight[-1], dtail
