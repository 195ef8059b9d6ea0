"""Elman network and GRU compiled whole, for :mod:`transduce.ops.rnn`: float32 on the CPU.

One launch runs all steps. At each step a thread multiplies with the packed weights (:mod:`transduce.ops.panels`) and
passes over the gates, with exponentials that vectorise. It owns some rows and never waits for another one; or, where
there are few rows and large weights, some units of all rows: then each core keeps its part of the weights in its cache,
a single row has work for all, and the threads meet once a step (:func:`divide`).
Layout and treatment of masks are those of :mod:`transduce.ops.rnn_loop`; the gradient of the weights is one product of
torch's behind the loop. Imports numba; import it lazily.
"""

from __future__ import annotations

from typing import Sequence

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fastmath import row_function, sigmoid, tanh
from .kernels import Kernel, as_bytes, as_size, barrier, thread_number, threads_for
from .panels import COLUMNS, multiply, multiply_add, pack, padded
from .rnn_loop import INF, Product, by_head, columns, fold, held_pre, low_dtype, sum_by_head, unfold, zero_before

_F = np.float32


@numba.njit(error_model="numpy")
def share(rows, width, gates, threads, by_units):  # noqa: ANN001, ANN202
    """What the calling thread owns: rows lo, hi; units lo, hi; and the panels of its columns among ``gates * width``, as
    (parts, panels a part, first, last) with the same panels of every part."""
    me = thread_number()
    if by_units:
        panels = width // COLUMNS
        first, last = panels * me // threads, panels * (me + 1) // threads
        return (0, rows), (first * COLUMNS, last * COLUMNS), (gates, panels, first, last)
    panels = (gates * width + COLUMNS - 1) // COLUMNS
    return (rows * me // threads, rows * (me + 1) // threads), (0, width), (1, panels, 0, panels)


@numba.njit(error_model="numpy")
def forward_product(x, packed, u, rows, panels, per_head):  # noqa: ANN001, ANN202
    """u = x times the packed weights (H,panels,K,COLUMNS) of each row's head, in the rows and panels of :func:`share`."""
    (row, hi), (parts, of_a_part, first, last) = rows, panels
    while row < hi:
        head = row // per_head
        end = min(hi, (head + 1) * per_head)
        for part in range(parts):
            multiply(x[row:end], packed[head], u[row:end], part * of_a_part + first, part * of_a_part + last)
        row = end


@numba.njit(error_model="numpy")
def backward_product(d, packed, carry, rows, panels, per_head):  # noqa: ANN001, ANN202
    """carry += d times the packed weights, in the rows and panels of :func:`share`."""
    (row, hi), (_, _, first, last) = rows, panels
    while row < hi:
        head = row // per_head
        end = min(hi, (head + 1) * per_head)
        multiply_add(d[row:end], packed[head], carry[row:end], first, last)
        row = end


@numba.njit(error_model="numpy")
def forget(u, units, width):  # noqa: ANN001, ANN202
    """The product with a state that was reset: zero, for these units of every gate."""
    lo, hi = units
    for start in range(0, u.shape[0] - width + 1, width):
        u[start + lo : start + hi] = 0


# ---------------------------------------------------------------- Elman


@row_function
def _elman_row(u, pre, after, units):  # noqa: ANN001, ANN202
    lo, hi = units
    u, pre, after = u[lo:hi], pre[lo:hi], after[lo:hi]
    for j in range(hi - lo):
        after[j] = tanh(pre[j] + u[j])


def _elman_forward(data) -> None:  # noqa: ANN001
    """tensors pre (T,R,K), packed, states (T+1,R,K), u, restarts, held (T,R); sizes R, K, T, heads, threads,
    by_units."""
    rows, width, steps = as_size(data[6]), as_size(data[7]), as_size(data[8])
    heads, threads, by_units = as_size(data[9]), as_size(data[10]), as_size(data[11])
    panels = (width + COLUMNS - 1) // COLUMNS
    pre, states = carray(data[0], (steps, rows, width)), carray(data[2], (steps + 1, rows, width))
    packed, u = carray(data[1], (heads, panels, width, COLUMNS)), carray(data[3], (rows, panels * COLUMNS))
    has_restarts, restarts = as_size(data[4]) != 0, carray(as_bytes(data[4]), (steps, rows))
    has_held, held = as_size(data[5]) != 0, carray(as_bytes(data[5]), (steps, rows))
    mine, units, parts = share(rows, width, 1, threads, by_units)
    lo, hi = units
    for t in range(steps):
        forward_product(states[t], packed, u, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            if has_held and held[t, i]:
                states[t + 1, i, lo:hi] = states[t, i, lo:hi]
            else:
                if has_restarts and restarts[t, i]:
                    u[i, lo:hi] = 0
                _elman_row(u[i], pre[t, i], states[t + 1, i], units)
        if by_units:
            barrier()


@row_function
def _elman_row_back(dh, carry, after, d, units):  # noqa: ANN001, ANN202
    lo, hi = units
    dh, carry, after, d = dh[lo:hi], carry[lo:hi], after[lo:hi], d[lo:hi]
    for j in range(hi - lo):
        d[j] = (dh[j] + carry[j]) * (_F(1.0) - after[j] * after[j])


def _elman_backward(data) -> None:  # noqa: ANN001
    """tensors dh (T,R,K), carry (R,padded), states, d (T,R,K), packed, restarts, held; sizes R, K, T, heads, threads,
    by_units."""
    rows, width, steps = as_size(data[7]), as_size(data[8]), as_size(data[9])
    heads, threads, by_units = as_size(data[10]), as_size(data[11]), as_size(data[12])
    panels = (width + COLUMNS - 1) // COLUMNS
    dh, carry = carray(data[0], (steps, rows, width)), carray(data[1], (rows, panels * COLUMNS))
    states, d = carray(data[2], (steps + 1, rows, width)), carray(data[3], (steps, rows, width))
    packed = carray(data[4], (heads, panels, width, COLUMNS))
    has_restarts, restarts = as_size(data[5]) != 0, carray(as_bytes(data[5]), (steps, rows))
    has_held, held = as_size(data[6]) != 0, carray(as_bytes(data[6]), (steps, rows))
    mine, units, parts = share(rows, width, 1, threads, by_units)
    lo, hi = units
    for s in range(steps):
        t = steps - 1 - s
        for i in range(mine[0], mine[1]):
            if has_held and held[t, i]:
                d[t, i, lo:hi] = 0
                carry[i, lo:hi] += dh[t, i, lo:hi]
            else:
                _elman_row_back(dh[t, i], carry[i], states[t + 1, i], d[t, i], units)
                carry[i, lo:hi] = 0
        if by_units:
            barrier()
        backward_product(d[t], packed, carry, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            if has_restarts and restarts[t, i]:
                carry[i, lo:hi] = 0


# ---------------------------------------------------------------- GRU


@row_function
def _gru_row(u, bias, before, gates, inner, after, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = bias.shape[0], units
    bias, before, inner, after = bias[lo:hi], before[lo:hi], inner[lo:hi], after[lo:hi]
    u_r, u_z, u_n = u[lo:hi], u[width + lo : width + hi], u[2 * width + lo : 2 * width + hi]
    r_out, z_out, n_out = gates[lo:hi], gates[width + lo : width + hi], gates[2 * width + lo : 2 * width + hi]
    for j in range(hi - lo):
        product = u_n[j] + bias[j]
        r = sigmoid(r_out[j] + u_r[j])
        z = sigmoid(z_out[j] + u_z[j])
        n = tanh(n_out[j] + r * product)
        r_out[j] = r
        z_out[j] = z
        n_out[j] = n
        inner[j] = product
        after[j] = (_F(1.0) - z) * n + z * before[j]


def _gru_forward(data) -> None:  # noqa: ANN001
    """tensors bias (H,K), gates (T,R,3K), inner (T,R,K), states (T+1,R,K), packed, u (R,padded), zero (K), restarts
    (T,R); sizes R, K, T, heads, threads, by_units."""
    rows, width, steps = as_size(data[8]), as_size(data[9]), as_size(data[10])
    heads, threads, by_units = as_size(data[11]), as_size(data[12]), as_size(data[13])
    panels = (3 * width + COLUMNS - 1) // COLUMNS
    bias, gates = carray(data[0], (heads, width)), carray(data[1], (steps, rows, 3 * width))
    inner, states = carray(data[2], (steps, rows, width)), carray(data[3], (steps + 1, rows, width))
    packed, u = carray(data[4], (heads, panels, width, COLUMNS)), carray(data[5], (rows, panels * COLUMNS))
    zero = carray(data[6], (width,))
    has_restarts, restarts = as_size(data[7]) != 0, carray(as_bytes(data[7]), (steps, rows))
    per_head = rows // heads
    mine, units, parts = share(rows, width, 3, threads, by_units)
    for t in range(steps):
        forward_product(states[t], packed, u, mine, parts, per_head)
        for i in range(mine[0], mine[1]):
            before = states[t, i]
            if has_restarts and restarts[t, i]:
                forget(u[i], units, width)
                before = zero
            _gru_row(u[i], bias[i // per_head], before, gates[t, i], inner[t, i], states[t + 1, i], units)
        if by_units:
            barrier()


@row_function
def _gru_row_back(dh, carry, gates, inner, before, d, dn_out, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = dh.shape[0], units
    dh, carry, inner, before, dn_out = dh[lo:hi], carry[lo:hi], inner[lo:hi], before[lo:hi], dn_out[lo:hi]
    r_in, z_in, n_in = gates[lo:hi], gates[width + lo : width + hi], gates[2 * width + lo : 2 * width + hi]
    d_r, d_z, d_n = d[lo:hi], d[width + lo : width + hi], d[2 * width + lo : 2 * width + hi]
    for j in range(hi - lo):
        r, z, n = r_in[j], z_in[j], n_in[j]
        total = dh[j] + carry[j]
        dn = total * (_F(1.0) - z) * (_F(1.0) - n * n)
        d_inner = dn * r
        dn_out[j] = dn
        d_n[j] = d_inner
        d_r[j] = d_inner * inner[j] * (_F(1.0) - r)
        d_z[j] = total * (before[j] - n) * z * (_F(1.0) - z)
        carry[j] = total * z


def _gru_backward(data) -> None:  # noqa: ANN001
    """tensors dh (T,R,K), carry (R,padded), gates (T,R,3K), inner (T,R,K), states (T+1,R,K), d (T,R,3K), dn (T,R,K),
    packed, zero (K), restarts (T,R); sizes R, K, T, heads, threads, by_units."""
    rows, width, steps = as_size(data[10]), as_size(data[11]), as_size(data[12])
    heads, threads, by_units = as_size(data[13]), as_size(data[14]), as_size(data[15])
    panels = (width + COLUMNS - 1) // COLUMNS
    dh, carry = carray(data[0], (steps, rows, width)), carray(data[1], (rows, panels * COLUMNS))
    gates, inner = carray(data[2], (steps, rows, 3 * width)), carray(data[3], (steps, rows, width))
    states, d = carray(data[4], (steps + 1, rows, width)), carray(data[5], (steps, rows, 3 * width))
    dn, packed = carray(data[6], (steps, rows, width)), carray(data[7], (heads, panels, 3 * width, COLUMNS))
    zero = carray(data[8], (width,))
    has_restarts, restarts = as_size(data[9]) != 0, carray(as_bytes(data[9]), (steps, rows))
    mine, units, parts = share(rows, width, 1, threads, by_units)
    lo, hi = units
    for s in range(steps):
        t = steps - 1 - s
        for i in range(mine[0], mine[1]):
            before = zero if has_restarts and restarts[t, i] else states[t, i]
            _gru_row_back(dh[t, i], carry[i], gates[t, i], inner[t, i], before, d[t, i], dn[t, i], units)
        if by_units:
            barrier()
        backward_product(d[t], packed, carry, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            if has_restarts and restarts[t, i]:
                carry[i, lo:hi] = 0


# ---------------------------------------------------------------- functions


_elman_forward_kernel, _elman_backward_kernel = Kernel(_elman_forward), Kernel(_elman_backward)
_gru_forward_kernel, _gru_backward_kernel = Kernel(_gru_forward), Kernel(_gru_backward)
WORK = torch.float32
_LARGE = 100_000
"""Weights from which on a step is long enough to meet the other threads once in it (measured, two threads: 0.4 times the
time of one thread at 3 x 512 x 512, as long as it at 3 x 128 x 128)."""


def divide(rows: int, width: int, steps: int, gates: int) -> tuple[int, bool]:
    """How many threads take part, and whether they divide the units instead of the rows: where there is at most a row
    for each, large weights, and whole panels of every gate for all. With more rows the states that the cores show each
    other at every step cost more than a second reading of the weights."""
    threads = threads_for(8 * rows * width * steps)
    few, large = rows <= threads, gates * width * width >= _LARGE
    if few and large and 1 < threads <= width // COLUMNS and width % COLUMNS == 0:
        return threads, True
    return max(1, min(threads, rows)), False


def launch(kernel: Kernel, tensors: Sequence[Tensor | None], like: Tensor, heads: int, gates: int) -> None:
    """Run a kernel with so many gates over all steps of ``like`` (T,R,K)."""
    steps, rows, width = like.shape
    threads, by_units = divide(rows, width, steps, gates)
    kernel.launch(WORK, tensors, (rows, width, steps, heads, threads, by_units), threads)


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=WORK)


def initial(first: Tensor, steps: int, width: int, heads: int) -> Tensor:
    """A buffer of states (T+1,R,K) that begins with ``first`` (B,D)."""
    start = fold(first, WORK, width, heads)
    states = empty(steps + 1, *start.shape)
    states[0] = start
    return states


def packed_weights(weight: Tensor, heads: int, *, backward: bool = False) -> Tensor:
    blocks = by_head(weight.to(WORK), heads)  # (H,G*K,K)
    return pack(blocks if backward else blocks.mT)


def carried(rows: int, width: int) -> Tensor:
    """A gradient of states to which products are added, with room for whole panels: (R,padded)."""
    return torch.zeros(rows, padded(width))


class Elman(torch.autograd.Function):
    """As :class:`transduce.ops.rnn_loop.Elman`."""

    @staticmethod
    def forward(ctx, pre, weight, h0, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        width, heads = weight.shape[1], h0.shape[1] // weight.shape[1]
        arguments = held_pre(pre, mask, WORK, (0.0,), heads)
        states = initial(h0, len(arguments), width, heads)
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        u = empty(states.shape[1], padded(width))
        tensors = (arguments, packed_weights(weight, heads), states, u, restarts, held)
        launch(_elman_forward_kernel, tensors, arguments, heads, 1)
        ctx.save_for_backward(states, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, h0.dtype), low_dtype(pre), heads
        return unfold(states[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0 = ctx.needs_input_grad[:3]
        width, heads = weight.shape[1], ctx.heads
        d, carry = torch.empty_like(states[1:]), carried(states.shape[1], width)
        packed = packed_weights(weight, heads, backward=True)
        launch(_elman_backward_kernel, (fold(grad, WORK, width, heads), carry, states, d, packed, restarts, held), d, heads, 1)
        product = Product(weight, WORK, ctx.low, heads)
        read = zero_before(states[:-1], restarts)
        return (
            unfold(d, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(d, read, weight) if need_weight else None,
            unfold(carry[:, :width], width, heads).to(ctx.dtypes[1]) if need_h0 else None,
            None,
            None,
        )


class GRU(torch.autograd.Function):
    """As :class:`transduce.ops.rnn_loop.GRU`."""

    @staticmethod
    def forward(ctx, pre, weight, bias, h0, mask, resets):  # noqa: ANN001, ANN205
        width, heads = weight.shape[1], h0.shape[1] // weight.shape[1]
        gates = held_pre(pre, mask, WORK, (0.0, INF, 0.0), heads)
        steps, rows = gates.shape[:2]
        inner, states = empty(steps, rows, width), initial(h0, steps, width, heads)
        restarts, u = columns(resets, heads), empty(rows, padded(3 * width))
        packed, zero = packed_weights(weight, heads), torch.zeros(width)
        tensors = (bias.to(WORK).contiguous(), gates, inner, states, packed, u, zero, restarts)
        launch(_gru_forward_kernel, tensors, inner, heads, 3)
        ctx.save_for_backward(states, gates, inner, weight, restarts)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, bias.dtype, h0.dtype), low_dtype(pre), heads
        return unfold(states[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, gates, inner, weight, restarts = ctx.saved_tensors
        need_pre, need_weight, need_bias, need_h0 = ctx.needs_input_grad[:4]
        steps, rows, width = inner.shape
        heads, whole = ctx.heads, ctx.heads * width
        d, dn, carry = torch.empty_like(gates), torch.empty_like(inner), carried(rows, width)
        packed, zero = packed_weights(weight, heads, backward=True), torch.zeros(width)
        dh = fold(grad, WORK, width, heads)
        launch(_gru_backward_kernel, (dh, carry, gates, inner, states, d, dn, packed, zero, restarts), inner, heads, 3)
        dpre = None
        if need_pre:
            dpre = torch.empty(rows // heads, steps, 3 * whole, dtype=ctx.dtypes[0])
            unfold(d[..., : 2 * width], width, heads, into=dpre[..., : 2 * whole])
            unfold(dn, width, heads, into=dpre[..., 2 * whole :])
        product = Product(weight, WORK, ctx.low, heads)
        read = zero_before(states[:-1], restarts)
        return (
            dpre,
            product.weight_gradient(d, read, weight) if need_weight else None,
            sum_by_head(d[..., 2 * width :], heads).to(ctx.dtypes[1]) if need_bias else None,
            unfold(carry[:, :width], width, heads).to(ctx.dtypes[2]) if need_h0 else None,
            None,
            None,
        )
