"""Kernels of :func:`transduce.ops.spike.lif`. A thread owns whole rows of the batch, or blocks of their channels. Imports
numba; import it lazily."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .spike import SHARPNESS

_BLOCK_CHANNELS = 256
_SLOPE, _WIDTH = SHARPNESS / 2, (math.pi / 2 * SHARPNESS) ** 2


def _forward(data) -> None:  # noqa: ANN001
    """tensors x, constants (leak, threshold), v0, spikes, membranes, v, mask, resets; sizes batch, steps, width, blocks,
    threads."""
    batch, steps, width = as_size(data[8]), as_size(data[9]), as_size(data[10])
    blocks, threads = as_size(data[11]), as_size(data[12])
    x = carray(data[0], (batch, steps, width))
    leak, threshold = data[1][0], data[1][1]
    v0 = carray(data[2], (batch, width))
    spikes = carray(data[3], (batch, steps, width))
    membranes = carray(data[4], (batch, steps, width))
    v = carray(data[5], (batch, width))
    has_mask, has_resets = as_size(data[6]) != 0, as_size(data[7]) != 0
    mask = carray(as_bytes(data[6]), (batch, steps))
    resets = carray(as_bytes(data[7]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        now = v[row, lo:hi]
        now[:] = v0[row, lo:hi]
        for t in range(steps):
            s, u, x_t = spikes[row, t, lo:hi], membranes[row, t, lo:hi], x[row, t, lo:hi]
            if has_mask and not mask[row, t]:
                for i in range(hi - lo):
                    s[i] = u[i] = 0
                continue
            if has_resets and resets[row, t]:
                for i in range(hi - lo):
                    now[i] = 0
            for i in range(hi - lo):
                charged = now[i] + (x_t[i] - now[i]) * leak
                u[i] = charged
                fires = charged >= threshold
                s[i] = fires
                now[i] = 0 if fires else charged


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, constants (leak, threshold, slope, width of the surrogate), membranes, dx, dv0 (holds the gradient of
    the last membranes), mask, resets; sizes as forward."""
    batch, steps, width = as_size(data[7]), as_size(data[8]), as_size(data[9])
    blocks, threads = as_size(data[10]), as_size(data[11])
    grad = carray(data[0], (batch, steps, width))
    leak, threshold, slope, spread = data[1][0], data[1][1], data[1][2], data[1][3]
    membranes = carray(data[2], (batch, steps, width))
    dx = carray(data[3], (batch, steps, width))
    dv0 = carray(data[4], (batch, width))
    has_mask, has_resets = as_size(data[5]) != 0, as_size(data[6]) != 0
    mask = carray(as_bytes(data[5]), (batch, steps))
    resets = carray(as_bytes(data[6]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        carry = dv0[row, lo:hi]
        for t in range(steps - 1, -1, -1):
            u, g, d = membranes[row, t, lo:hi], grad[row, t, lo:hi], dx[row, t, lo:hi]
            if has_mask and not mask[row, t]:
                for i in range(hi - lo):
                    d[i] = 0
                continue
            for i in range(hi - lo):
                z = u[i] - threshold
                kept = 0 if z >= 0 else carry[i]
                into = kept + g[i] * slope / (1 + spread * z * z)
                d[i] = into * leak
                carry[i] = into - into * leak
            if has_resets and resets[row, t]:
                for i in range(hi - lo):
                    carry[i] = 0


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(x: Tensor) -> list[int]:
    batch, _, width = x.shape
    threads = threads_for(x.numel())
    blocks = min(threads // math.gcd(batch, threads), max(1, width // _BLOCK_CHANNELS))
    return [*x.shape, blocks, min(threads, batch * blocks)]


def _constants(x: Tensor, *values: float) -> Tensor:
    return torch.from_numpy(np.array(values)).to(x.dtype)


def forward(
    x: Tensor, v0: Tensor, tau: float, threshold: float, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, the membranes behind the last step, and those of every step before it is decided whether they fire."""
    spikes, membranes, v = torch.empty_like(x), torch.empty_like(x), v0.clone()
    if x.numel():
        sizes = _plan(x)
        tensors = (x, _constants(x, 1 / tau, threshold), v0, spikes, membranes, v, mask, resets)
        _forward_kernel.launch(x.dtype, tensors, sizes, sizes[-1])
    return spikes, v, membranes


def backward(
    grad: Tensor,
    grad_v: Tensor,
    membranes: Tensor,
    tau: float,
    threshold: float,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dx, dv0 = torch.empty_like(grad), grad_v.clone(memory_format=torch.contiguous_format)
    if grad.numel():
        sizes = _plan(grad)
        constants = _constants(grad, 1 / tau, threshold, _SLOPE, _WIDTH)
        _backward_kernel.launch(grad.dtype, (grad, constants, membranes, dx, dv0, mask, resets), sizes, sizes[-1])
    return dx, dv0
