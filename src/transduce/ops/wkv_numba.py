"""Kernels of :func:`transduce.ops.wkv`: one pass over the data, rows of channels in registers, two exponentials a number.

Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise
from .lanes_math import exp_pair, where_above

_STRIP_BYTES = 512
"""A row is cut into strips no narrower than this, so that no two threads write into one cache line's neighbours."""


def _step(
    k: Lanes, v: Lanes, rate: Lanes, bonus: Lanes, peak: Lanes, mass: Lanes, total: Lanes
) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """The average, and the state behind the step."""
    past, now = exp_pair(peak - (bonus + k))
    y = (past * total + now * v) / (past * mass + now)
    old = peak - rate
    fade, weight = exp_pair(old - k)
    return y, where_above(k, old, k, old), fade * mass + weight, fade * total + weight * v


def _step_back(*rows: Lanes) -> tuple[Lanes, ...]:
    """The state (peak, mass, total) is the one before the step; d_mass and d_total are gradients of the one behind it, and
    then of the one before it."""
    grad, k, v, rate, bonus, y, peak, mass, total, d_rate, d_bonus, d_mass, d_total = rows
    past, now = exp_pair(peak - (bonus + k))
    scaled = grad / (past * mass + now)
    present = scaled * now
    d_present = present * (v - y)
    fade, weight = exp_pair((peak - rate) - k)
    d_k = d_present + weight * (d_total * v + d_mass)
    d_v = present + weight * d_total
    from_past = scaled * past
    d_rate = d_rate - fade * (d_total * total + d_mass * mass)
    return d_k, d_v, d_rate, d_bonus + d_present, fade * d_mass - from_past * y, fade * d_total + from_past


_step_rows, _back_rows = lanewise(_step, inputs=7), lanewise(_step_back, inputs=13, falling=True)


def _forward(data) -> None:  # noqa: ANN001
    """tensors k, v, rate, bonus, y, peaks, masses, totals (B,kept,D), nothing (3,D; an empty state), mask, resets; sizes
    batch, steps, width, blocks, threads, kept (``steps`` + 1, or 1: the state is changed in place)."""
    batch, steps, width = as_size(data[11]), as_size(data[12]), as_size(data[13])
    blocks, threads, kept = as_size(data[14]), as_size(data[15]), as_size(data[16])
    k, v = carray(data[0], (batch, steps, width)), carray(data[1], (batch, steps, width))
    rate, bonus = carray(data[2], (width,)), carray(data[3], (width,))
    y, peaks = carray(data[4], (batch, steps, width)), carray(data[5], (batch, kept, width))
    masses, totals = carray(data[6], (batch, kept, width)), carray(data[7], (batch, kept, width))
    nothing = carray(data[8], (3, width))
    has_mask, mask = as_size(data[9]) != 0, carray(as_bytes(data[9]), (batch, steps))
    has_resets, resets = as_size(data[10]) != 0, carray(as_bytes(data[10]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        for t in range(steps):
            here, there = t % kept, (t + 1) % kept
            peak, mass, total = peaks[row, here, lo:hi], masses[row, here, lo:hi], totals[row, here, lo:hi]
            after = (peaks[row, there, lo:hi], masses[row, there, lo:hi], totals[row, there, lo:hi])
            if has_mask and not mask[row, t]:
                y[row, t, lo:hi] = 0
                if kept > 1:
                    after[0][:] = peak
                    after[1][:] = mass
                    after[2][:] = total
                continue
            if has_resets and resets[row, t]:
                peak, mass, total = nothing[0, lo:hi], nothing[1, lo:hi], nothing[2, lo:hi]
            given = (k[row, t, lo:hi], v[row, t, lo:hi], rate[lo:hi], bonus[lo:hi], peak, mass, total)
            _step_rows((*given, y[row, t, lo:hi], *after))


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, k, v, rate, bonus, y, peaks, masses, totals (B,T+1,D), nothing (3,D), d_k, d_v, d_rate, d_bonus (B,D;
    added to), d_mass, d_total (B,D; in behind the last step, out before the first), mask, resets; sizes batch, steps,
    width, blocks, threads."""
    batch, steps, width = as_size(data[18]), as_size(data[19]), as_size(data[20])
    blocks, threads = as_size(data[21]), as_size(data[22])
    grad, k = carray(data[0], (batch, steps, width)), carray(data[1], (batch, steps, width))
    v, y = carray(data[2], (batch, steps, width)), carray(data[5], (batch, steps, width))
    rate, bonus = carray(data[3], (width,)), carray(data[4], (width,))
    peaks, masses = carray(data[6], (batch, steps + 1, width)), carray(data[7], (batch, steps + 1, width))
    totals, nothing = carray(data[8], (batch, steps + 1, width)), carray(data[9], (3, width))
    d_k, d_v = carray(data[10], (batch, steps, width)), carray(data[11], (batch, steps, width))
    d_rate, d_bonus = carray(data[12], (batch, width)), carray(data[13], (batch, width))
    d_mass, d_total = carray(data[14], (batch, width)), carray(data[15], (batch, width))
    has_mask, mask = as_size(data[16]) != 0, carray(as_bytes(data[16]), (batch, steps))
    has_resets, resets = as_size(data[17]) != 0, carray(as_bytes(data[17]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        carries = (d_rate[row, lo:hi], d_bonus[row, lo:hi], d_mass[row, lo:hi], d_total[row, lo:hi])
        for t in range(steps - 1, -1, -1):
            if has_mask and not mask[row, t]:
                d_k[row, t, lo:hi] = 0
                d_v[row, t, lo:hi] = 0
                continue
            restart = has_resets and resets[row, t]
            peak, mass, total = peaks[row, t, lo:hi], masses[row, t, lo:hi], totals[row, t, lo:hi]
            if restart:
                peak, mass, total = nothing[0, lo:hi], nothing[1, lo:hi], nothing[2, lo:hi]
            given = (grad[row, t, lo:hi], k[row, t, lo:hi], v[row, t, lo:hi], rate[lo:hi], bonus[lo:hi])
            past = (y[row, t, lo:hi], peak, mass, total)
            _back_rows((*given, *past, *carries, d_k[row, t, lo:hi], d_v[row, t, lo:hi], *carries))
            if restart:
                carries[2][:] = 0
                carries[3][:] = 0


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(k: Tensor) -> tuple[list[int], int]:
    """Sizes and threads; channels are cut into blocks so that every thread gets the same number of strips."""
    batch, _, width = k.shape
    threads = threads_for(8 * k.numel())  # a number takes as long as eight that are only moved
    blocks = min(threads // math.gcd(batch, threads), max(1, width * k.element_size() // _STRIP_BYTES))
    threads = min(threads, batch * blocks)
    return [*k.shape, blocks, threads], threads


def _nothing(k: Tensor) -> Tensor:
    rows = k.new_zeros(3, k.shape[2])
    rows[0] = -math.inf
    return rows


def forward(
    args: tuple[Tensor, ...], mask: Tensor | None, resets: Tensor | None, *, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """``args``: k, v, rate, bonus, start, contiguous and of one dtype. The averages, and m, u, w (B,T+1,D) before the
    first step and behind every one; without ``keep`` (B,1,D) behind the last one."""
    k, v, rate, bonus, start = args
    batch, steps, width = k.shape
    kept = steps + 1 if keep else 1
    states = tuple(k.new_empty(batch, kept, width) for _ in range(3))
    for state, part in zip(states, start.unbind(-1)):
        state[:, 0] = part
    y = torch.empty_like(v)
    if k.numel():
        sizes, threads = _plan(k)
        tensors = (k, v, rate, bonus, y, *states, _nothing(k), mask, resets)
        _forward_kernel.launch(k.dtype, tensors, [*sizes, kept], threads)
    return y, states


def backward(
    grad: Tensor, grad_mass: Tensor, grad_sum: Tensor, saved: tuple[Tensor, ...], flags: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Gradients of k, v (B,T,D), rate and bonus (B,D, one a row), and of the first state's u and w (B,D); ``saved``: k, v,
    rate, bonus, averages, and m, u, w of every step."""
    k, v, rate, bonus, y, *states = saved
    d_k, d_v = torch.empty_like(k), torch.empty_like(v)
    d_rate, d_bonus = torch.zeros_like(grad_mass), torch.zeros_like(grad_mass)
    d_mass, d_sum = grad_mass.clone(), grad_sum.clone()
    if k.numel():
        sizes, threads = _plan(k)
        tensors = (grad, k, v, rate, bonus, y, *states, _nothing(k), d_k, d_v, d_rate, d_bonus, d_mass, d_sum, *flags)
        _backward_kernel.launch(k.dtype, tensors, sizes, threads)
    return d_k, d_v, d_rate, d_bonus, d_mass, d_sum
