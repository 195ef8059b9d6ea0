"""Kernels of :func:`transduce.ops.softmax_scan`: one pass over the data, a head's channels in the inner loop.

The exponentials are those of the scores, one a head and step, so the passes cost what reading the values and writing
the averages costs. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import numba
import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise


def _add(total: Lanes, value: Lanes, keep: Lanes, weight: Lanes, inverse: Lanes) -> tuple[Lanes, Lanes]:
    """The weighted sum, and the average."""
    total = total * keep + value * weight
    return total, total * inverse


def _add_back(carry: Lanes, grad: Lanes, inverse: Lanes, weight: Lanes) -> tuple[Lanes, Lanes]:
    """The gradient of the weighted sum, and that of the value."""
    carry = carry + grad * inverse
    return carry, carry * weight


def _scale(row: Lanes, factor: Lanes) -> tuple[Lanes]:
    return (row * factor,)


_add_rows, _back_rows, _scale_row = lanewise(_add, inputs=2), lanewise(_add_back, inputs=2, falling=True), lanewise(_scale, inputs=1)


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _products(grad, y, value, carry):  # noqa: ANN001, ANN202
    """grad . y, grad . value and carry . value"""
    with_y, with_value, carried = grad[0] * y[0], grad[0] * value[0], carry[0] * value[0]
    for i in range(1, len(grad)):
        with_y += grad[i] * y[i]
        with_value += grad[i] * value[i]
        carried += carry[i] * value[i]
    return with_y, with_value, carried


def _forward(data) -> None:  # noqa: ANN001
    """tensors scores, values, peak, mass, total (the state, changed in place), y, peaks, masses, mask, resets; sizes
    batch, steps, heads, width, blocks, threads."""
    batch, steps, heads, width = as_size(data[10]), as_size(data[11]), as_size(data[12]), as_size(data[13])
    blocks, threads = as_size(data[14]), as_size(data[15])
    scores, values = carray(data[0], (batch, steps, heads)), carray(data[1], (batch, steps, heads, width))
    peak, mass = carray(data[2], (batch, heads)), carray(data[3], (batch, heads))
    total, y = carray(data[4], (batch, heads, width)), carray(data[5], (batch, steps, heads, width))
    peaks, masses = carray(data[6], (batch, steps, heads)), carray(data[7], (batch, steps, heads))
    has_mask, mask = as_size(data[8]) != 0, carray(as_bytes(data[8]), (batch, steps))
    has_resets, resets = as_size(data[9]) != 0, carray(as_bytes(data[9]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = heads * block // blocks, heads * (block + 1) // blocks
        for t in range(steps):
            if has_mask and not mask[row, t]:
                peaks[row, t, lo:hi] = peak[row, lo:hi]
                masses[row, t, lo:hi] = mass[row, lo:hi]
                y[row, t, lo:hi] = 0
                continue
            restart = has_resets and resets[row, t]
            for h in range(lo, hi):
                s, m, u = scores[row, t, h], peak[row, h], mass[row, h]
                keep, weight = 1.0, 1.0
                if restart:
                    m, u, keep = -math.inf, 0.0, 0.0
                    total[row, h] = 0
                if s > m:
                    keep, m = math.exp(m - s), s
                elif s == -math.inf:
                    weight = 0.0
                else:
                    weight = math.exp(s - m)
                u = u * keep + weight
                inverse = 1.0 / u if u != 0 else 0.0
                peak[row, h], mass[row, h] = m, u
                peaks[row, t, h], masses[row, t, h] = m, u
                _add_rows((total[row, h], values[row, t, h], total[row, h], y[row, t, h], keep, weight, inverse))


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, scores, values, first (B,H, the peaks before the first step), y, peaks, masses, d_scores, d_values,
    d_mass and d_total (those of the state: in behind the last step, out before the first), mask, resets; sizes batch,
    steps, heads, width, blocks, threads."""
    batch, steps, heads, width = as_size(data[13]), as_size(data[14]), as_size(data[15]), as_size(data[16])
    blocks, threads = as_size(data[17]), as_size(data[18])
    grad, scores = carray(data[0], (batch, steps, heads, width)), carray(data[1], (batch, steps, heads))
    values, first = carray(data[2], (batch, steps, heads, width)), carray(data[3], (batch, heads))
    y, peaks = carray(data[4], (batch, steps, heads, width)), carray(data[5], (batch, steps, heads))
    masses, d_scores = carray(data[6], (batch, steps, heads)), carray(data[7], (batch, steps, heads))
    d_values, d_mass = carray(data[8], (batch, steps, heads, width)), carray(data[9], (batch, heads))
    d_total = carray(data[10], (batch, heads, width))
    has_mask, mask = as_size(data[11]) != 0, carray(as_bytes(data[11]), (batch, steps))
    has_resets, resets = as_size(data[12]) != 0, carray(as_bytes(data[12]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = heads * block // blocks, heads * (block + 1) // blocks
        for t in range(steps - 1, -1, -1):
            if has_mask and not mask[row, t]:
                d_scores[row, t, lo:hi] = 0
                d_values[row, t, lo:hi] = 0
                continue
            restart = has_resets and resets[row, t]
            for h in range(hi - 1, lo - 1, -1):
                s, m, u = scores[row, t, h], peaks[row, t, h], masses[row, t, h]
                before = first[row, h] if t == 0 else peaks[row, t - 1, h]
                inverse = 1.0 / u if u != 0 else 0.0
                weight = 0.0 if s == -math.inf else math.exp(s - m)
                carry = d_total[row, h]
                # Products before stores: what is written below lies at the same place of a page as what is read here
                # when tensors are large, and a processor then waits for the store.
                with_y, with_value, carried = _products(grad[row, t, h], y[row, t, h], values[row, t, h], carry)
                d_mass[row, h] -= with_y * inverse
                d_scores[row, t, h] = weight * (carried + with_value * inverse + d_mass[row, h])
                _back_rows((carry, grad[row, t, h], carry, d_values[row, t, h], inverse, weight))
                if restart or before == -math.inf:
                    d_mass[row, h] = 0
                    carry[:] = 0
                elif before != m:
                    fade = math.exp(before - m)
                    d_mass[row, h] *= fade
                    _scale_row((carry, carry, fade))


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(values: Tensor) -> tuple[list[int], int]:
    """Sizes and threads: heads are cut into blocks so that every thread gets the same number of (row, block)."""
    batch, _, heads, _ = values.shape
    threads = threads_for(values.numel())
    blocks = min(threads // math.gcd(batch, threads), heads)
    threads = min(threads, batch * blocks)
    return [*values.shape, blocks, threads], threads


def forward(
    scores: Tensor, values: Tensor, start: Tensor, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All arguments contiguous and of one dtype. The averages, the last state, and m and u behind every step."""
    peak, mass, total = (part.clone() for part in (start[..., 0], start[..., 1], start[..., 2:]))
    y, peaks, masses = torch.empty_like(values), torch.empty_like(scores), torch.empty_like(scores)
    peak, mass, total = peak.contiguous(), mass.contiguous(), total.contiguous()
    if values.numel():
        sizes, threads = _plan(values)
        tensors = (scores, values, peak, mass, total, y, peaks, masses, mask, resets)
        _forward_kernel.launch(values.dtype, tensors, sizes, threads)
    return y, torch.cat((peak[..., None], mass[..., None], total), -1), peaks, masses


def backward(
    grad: Tensor, grad_sums: Tensor, saved: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scores, values and the first state's (u, w), from those of the averages and of the last (u, w);
    ``saved``: scores, values, start, mask, resets, averages, m and u of every step."""
    scores, values, start, mask, resets, y, peaks, masses = saved
    d_scores, d_values = torch.empty_like(scores), torch.empty_like(values)
    d_mass, d_total = grad_sums[..., 0].contiguous().clone(), grad_sums[..., 1:].contiguous().clone()
    if values.numel():
        sizes, threads = _plan(values)
        tensors = (grad, scores, values, start[..., 0].contiguous(), y, peaks, masses)
        tensors += (d_scores, d_values, d_mass, d_total, mask, resets)
        _backward_kernel.launch(values.dtype, tensors, sizes, threads)
    return d_scores, d_values, torch.cat((d_mass[..., None], d_total), -1)
