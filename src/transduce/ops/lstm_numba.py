"""LSTM and sLSTM compiled whole, for :mod:`transduce.ops.rnn` and :mod:`transduce.ops.slstm`: float32 on the CPU, as
:mod:`transduce.ops.rnn_numba`. Imports numba; import it lazily."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch.autograd.function import once_differentiable

from ..core.seq import zero_masked
from .fastmath import exp, inlined, log_sigmoid, row_function, sigmoid, tanh
from .kernels import Kernel, as_bytes, as_size, barrier
from .panels import COLUMNS, padded
from .rnn_loop import INF, Product, columns, fold, held_pre, low_dtype, unfold, zero_before
from .rnn_numba import (
    WORK,
    backward_product,
    carried,
    empty,
    forget,
    forward_product,
    initial,
    launch,
    packed_weights,
    share,
)

_F = np.float32


@inlined
def by_gate(row, width, units):  # noqa: ANN001, ANN202
    """These units of each of the four gates that stand in a row."""
    lo, hi = units
    second, third, fourth = width, 2 * width, 3 * width
    return row[lo:hi], row[second + lo : second + hi], row[third + lo : third + hi], row[fourth + lo : fourth + hi]


# ---------------------------------------------------------------- LSTM


@row_function
def _lstm_row(u, before, gates, memory, squashed, after, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = before.shape[0], units
    u_i, u_f, u_g, u_o = by_gate(u, width, units)
    i_out, f_out, g_out, o_out = by_gate(gates, width, units)
    before, memory, squashed, after = before[lo:hi], memory[lo:hi], squashed[lo:hi], after[lo:hi]
    for j in range(hi - lo):
        i = sigmoid(i_out[j] + u_i[j])
        f = sigmoid(f_out[j] + u_f[j])
        g = tanh(g_out[j] + u_g[j])
        o = sigmoid(o_out[j] + u_o[j])
        c = f * before[j] + i * g
        s = tanh(c)
        i_out[j] = i
        f_out[j] = f
        g_out[j] = g
        o_out[j] = o
        memory[j] = c
        squashed[j] = s
        after[j] = o * s


def _lstm_forward(data) -> None:  # noqa: ANN001
    """tensors gates (T,R,4K), cs, hs (T+1,R,K), squashed (T,R,K), packed, u (R,padded), zero (K), restarts, held (T,R);
    sizes R, K, T, heads, threads, by_units."""
    rows, width, steps = as_size(data[9]), as_size(data[10]), as_size(data[11])
    heads, threads, by_units = as_size(data[12]), as_size(data[13]), as_size(data[14])
    panels = (4 * width + COLUMNS - 1) // COLUMNS
    gates, squashed = carray(data[0], (steps, rows, 4 * width)), carray(data[3], (steps, rows, width))
    cs, hs = carray(data[1], (steps + 1, rows, width)), carray(data[2], (steps + 1, rows, width))
    packed, u = carray(data[4], (heads, panels, width, COLUMNS)), carray(data[5], (rows, panels * COLUMNS))
    zero = carray(data[6], (width,))
    has_restarts, restarts = as_size(data[7]) != 0, carray(as_bytes(data[7]), (steps, rows))
    has_held, held = as_size(data[8]) != 0, carray(as_bytes(data[8]), (steps, rows))
    mine, units, parts = share(rows, width, 4, threads, by_units)
    lo, hi = units
    for t in range(steps):
        forward_product(hs[t], packed, u, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            before = cs[t, i]
            if has_restarts and restarts[t, i]:
                forget(u[i], units, width)
                before = zero
            _lstm_row(u[i], before, gates[t, i], cs[t + 1, i], squashed[t, i], hs[t + 1, i], units)
            if has_held and held[t, i]:
                hs[t + 1, i, lo:hi] = hs[t, i, lo:hi]
        if by_units:
            barrier()


@row_function
def _lstm_row_back(dh, dc, gates, squashed, before, d, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = dc.shape[0], units
    i_in, f_in, g_in, o_in = by_gate(gates, width, units)
    d_i, d_f, d_g, d_o = by_gate(d, width, units)
    dh, dc, squashed, before = dh[lo:hi], dc[lo:hi], squashed[lo:hi], before[lo:hi]
    for j in range(hi - lo):
        i, f, g, o, s, of_h = i_in[j], f_in[j], g_in[j], o_in[j], squashed[j], dh[j]
        of_c = dc[j] + of_h * o * (_F(1.0) - s * s)
        d_i[j] = of_c * g * i * (_F(1.0) - i)
        d_f[j] = of_c * before[j] * f * (_F(1.0) - f)
        d_g[j] = of_c * i * (_F(1.0) - g * g)
        d_o[j] = of_h * s * o * (_F(1.0) - o)
        dc[j] = of_c * f


def _lstm_backward(data) -> None:  # noqa: ANN001
    """tensors of_h, of_c (T,R,K; missing: zero), dh (R,padded), dc (R,K), gates (T,R,4K), squashed (T,R,K), cs
    (T+1,R,K), d (T,R,4K), packed, zero (K), restarts, held (T,R); sizes R, K, T, heads, threads,
    by_units."""
    rows, width, steps = as_size(data[12]), as_size(data[13]), as_size(data[14])
    heads, threads, by_units = as_size(data[15]), as_size(data[16]), as_size(data[17])
    panels = (width + COLUMNS - 1) // COLUMNS
    of_h, of_c = carray(data[0], (steps, rows, width)), carray(data[1], (steps, rows, width))
    has_h, has_c = as_size(data[0]) != 0, as_size(data[1]) != 0
    dh, dc = carray(data[2], (rows, panels * COLUMNS)), carray(data[3], (rows, width))
    gates, squashed = carray(data[4], (steps, rows, 4 * width)), carray(data[5], (steps, rows, width))
    cs, d = carray(data[6], (steps + 1, rows, width)), carray(data[7], (steps, rows, 4 * width))
    packed, zero = carray(data[8], (heads, panels, 4 * width, COLUMNS)), carray(data[9], (width,))
    has_restarts, restarts = as_size(data[10]) != 0, carray(as_bytes(data[10]), (steps, rows))
    has_held, held = as_size(data[11]) != 0, carray(as_bytes(data[11]), (steps, rows))
    mine, units, parts = share(rows, width, 1, threads, by_units)
    lo, hi = units
    for s in range(steps):
        t = steps - 1 - s
        for i in range(mine[0], mine[1]):
            before = cs[t, i]
            if has_h:
                dh[i, lo:hi] += of_h[t, i, lo:hi]
            if has_c:
                dc[i, lo:hi] += of_c[t, i, lo:hi]
            if has_restarts and restarts[t, i]:
                before = zero
            _lstm_row_back(dh[i], dc[i], gates[t, i], squashed[t, i], before, d[t, i], units)
            if not (has_held and held[t, i]):
                dh[i, lo:hi] = 0
        if by_units:
            barrier()
        backward_product(d[t], packed, dh, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            if has_restarts and restarts[t, i]:
                dh[i, lo:hi] = 0
                dc[i, lo:hi] = 0


# ---------------------------------------------------------------- sLSTM


@row_function
def _slstm_row(u, before, gates, closing, after, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = before[0].shape[0], units
    u_i, u_f, u_z, u_o = by_gate(u, width, units)
    i_out, f_out, z_out, o_out = by_gate(gates, width, units)
    c0, n0, m0, closing = before[0][lo:hi], before[1][lo:hi], before[2][lo:hi], closing[lo:hi]
    c1, n1, m1, h1 = after[0][lo:hi], after[1][lo:hi], after[2][lo:hi], after[3][lo:hi]
    for j in range(hi - lo):
        i, f = i_out[j] + u_i[j], f_out[j] + u_f[j]
        begins = n0[j] == _F(0.0)
        kept = log_sigmoid(f) + m0[j]
        m = i if begins or i >= kept else kept
        write = exp(i - m)
        keep = _F(0.0) if begins else exp(kept - m)
        z, o = tanh(z_out[j] + u_z[j]), sigmoid(o_out[j] + u_o[j])
        c, n = keep * c0[j] + write * z, keep * n0[j] + write
        i_out[j] = write
        f_out[j] = keep
        z_out[j] = z
        o_out[j] = o
        closing[j] = sigmoid(-f)
        c1[j] = c
        n1[j] = n
        m1[j] = m
        h1[j] = o * c / n


def _slstm_forward(data) -> None:  # noqa: ANN001
    """tensors gates (T,R,4K), hs, cs, ns, ms (T+1,R,K), closing (T,R,K), packed, u (R,padded), zero (K), restarts, held
    (T,R); sizes R, K, T, heads, threads, by_units."""
    rows, width, steps = as_size(data[11]), as_size(data[12]), as_size(data[13])
    heads, threads, by_units = as_size(data[14]), as_size(data[15]), as_size(data[16])
    panels = (4 * width + COLUMNS - 1) // COLUMNS
    gates, closing = carray(data[0], (steps, rows, 4 * width)), carray(data[5], (steps, rows, width))
    hs, cs = carray(data[1], (steps + 1, rows, width)), carray(data[2], (steps + 1, rows, width))
    ns, ms = carray(data[3], (steps + 1, rows, width)), carray(data[4], (steps + 1, rows, width))
    packed, u = carray(data[6], (heads, panels, width, COLUMNS)), carray(data[7], (rows, panels * COLUMNS))
    zero = carray(data[8], (width,))
    has_restarts, restarts = as_size(data[9]) != 0, carray(as_bytes(data[9]), (steps, rows))
    has_held, held = as_size(data[10]) != 0, carray(as_bytes(data[10]), (steps, rows))
    mine, units, parts = share(rows, width, 4, threads, by_units)
    lo, hi = units
    for t in range(steps):
        forward_product(hs[t], packed, u, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            c, n, m = cs[t, i], ns[t, i], ms[t, i]
            if has_held and held[t, i]:
                hs[t + 1, i, lo:hi] = hs[t, i, lo:hi]
                cs[t + 1, i, lo:hi] = c[lo:hi]
                ns[t + 1, i, lo:hi] = n[lo:hi]
                ms[t + 1, i, lo:hi] = m[lo:hi]
                forget(gates[t, i], units, width)
                closing[t, i, lo:hi] = 0
                continue
            if has_restarts and restarts[t, i]:
                forget(u[i], units, width)
                c, n, m = zero, zero, zero
            after = (cs[t + 1, i], ns[t + 1, i], ms[t + 1, i], hs[t + 1, i])
            _slstm_row(u[i], (c, n, m), gates[t, i], closing[t, i], after, units)
        if by_units:
            barrier()


@row_function
def _slstm_row_back(carries, gates, closing, before, after, d, units):  # noqa: ANN001, ANN202
    width, (lo, hi) = closing.shape[0], units
    dh, dc, dn, dm = carries[0][lo:hi], carries[1][lo:hi], carries[2][lo:hi], carries[3][lo:hi]
    c0, n0, h1, n1 = before[0][lo:hi], before[1][lo:hi], after[0][lo:hi], after[1][lo:hi]
    w_in, k_in, z_in, o_in = by_gate(gates, width, units)
    d_i, d_f, d_z, d_o = by_gate(d, width, units)
    closing = closing[lo:hi]
    for j in range(hi - lo):
        write, keep, z, o, of_h = w_in[j], k_in[j], z_in[j], o_in[j], dh[j]
        by_n = of_h / n1[j]
        of_c, of_n = dc[j] + by_n * o, dn[j] - by_n * h1[j]
        of_i = (of_c * z + of_n) * write
        of_l = (of_c * c0[j] + of_n * n0[j]) * keep
        of_m = dm[j] - of_i - of_l
        wins = write == _F(1.0)  # i is the maximum
        of_l += _F(0.0) if wins else of_m
        d_i[j] = of_i + (of_m if wins else _F(0.0))
        d_f[j] = of_l * closing[j]
        d_z[j] = of_c * write * (_F(1.0) - z * z)
        d_o[j] = of_h * h1[j] * (_F(1.0) - o)
        dc[j] = of_c * keep
        dn[j] = of_n * keep
        dm[j] = of_l


def _slstm_backward(data) -> None:  # noqa: ANN001
    """tensors of_h (T,R,K; missing: zero), dh (R,padded), dc, dn, dm (R,K), gates (T,R,4K), closing (T,R,K), hs, cs, ns
    (T+1,R,K), d (T,R,4K), packed, zero (K), restarts, held (T,R); sizes R, K, T, heads, threads, by_units."""
    rows, width, steps = as_size(data[15]), as_size(data[16]), as_size(data[17])
    heads, threads, by_units = as_size(data[18]), as_size(data[19]), as_size(data[20])
    panels = (width + COLUMNS - 1) // COLUMNS
    has_h, of_h = as_size(data[0]) != 0, carray(data[0], (steps, rows, width))
    dh, dc = carray(data[1], (rows, panels * COLUMNS)), carray(data[2], (rows, width))
    dn, dm = carray(data[3], (rows, width)), carray(data[4], (rows, width))
    gates, closing = carray(data[5], (steps, rows, 4 * width)), carray(data[6], (steps, rows, width))
    hs, cs = carray(data[7], (steps + 1, rows, width)), carray(data[8], (steps + 1, rows, width))
    ns, d = carray(data[9], (steps + 1, rows, width)), carray(data[10], (steps, rows, 4 * width))
    packed, zero = carray(data[11], (heads, panels, 4 * width, COLUMNS)), carray(data[12], (width,))
    has_restarts, restarts = as_size(data[13]) != 0, carray(as_bytes(data[13]), (steps, rows))
    has_held, held = as_size(data[14]) != 0, carray(as_bytes(data[14]), (steps, rows))
    mine, units, parts = share(rows, width, 1, threads, by_units)
    lo, hi = units
    for s in range(steps):
        t = steps - 1 - s
        for i in range(mine[0], mine[1]):
            c, n = cs[t, i], ns[t, i]
            if has_h:
                dh[i, lo:hi] += of_h[t, i, lo:hi]
            if has_held and held[t, i]:
                forget(d[t, i], units, width)
                continue
            if has_restarts and restarts[t, i]:
                c, n = zero, zero
            carries, after = (dh[i], dc[i], dn[i], dm[i]), (hs[t + 1, i], ns[t + 1, i])
            _slstm_row_back(carries, gates[t, i], closing[t, i], (c, n), after, d[t, i], units)
            dh[i, lo:hi] = 0
        if by_units:
            barrier()
        backward_product(d[t], packed, dh, mine, parts, rows // heads)
        for i in range(mine[0], mine[1]):
            if has_restarts and restarts[t, i]:
                dh[i, lo:hi] = 0
                dc[i, lo:hi] = 0
                dn[i, lo:hi] = 0
                dm[i, lo:hi] = 0


# ---------------------------------------------------------------- functions


_lstm_forward_kernel, _lstm_backward_kernel = Kernel(_lstm_forward), Kernel(_lstm_backward)
_slstm_forward_kernel, _slstm_backward_kernel = Kernel(_slstm_forward), Kernel(_slstm_backward)


class LSTM(torch.autograd.Function):
    """As :class:`transduce.ops.rnn_loop.LSTM`."""

    @staticmethod
    def forward(ctx, pre, weight, h0, c0, mask, resets):  # noqa: ANN001, ANN205
        width, heads = weight.shape[1], h0.shape[1] // weight.shape[1]
        gates = held_pre(pre, mask, WORK, (-INF, INF, 0.0, -INF), heads)
        steps, rows = gates.shape[:2]
        hs, cs, squashed = initial(h0, steps, width, heads), initial(c0, steps, width, heads), empty(steps, rows, width)
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        packed, u, zero = packed_weights(weight, heads), empty(rows, padded(4 * width)), torch.zeros(width)
        tensors = (gates, cs, hs, squashed, packed, u, zero, restarts, held)
        launch(_lstm_forward_kernel, tensors, squashed, heads, 4)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hs, cs, gates, squashed, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, h0.dtype, c0.dtype), low_dtype(pre), heads
        return unfold(hs[1:], width, heads), unfold(cs[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_c):  # noqa: ANN001, ANN205
        hs, cs, gates, squashed, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0, need_c0 = ctx.needs_input_grad[:4]
        _, rows, width = squashed.shape
        heads = ctx.heads
        d, dh, dc = torch.empty_like(gates), carried(rows, width), torch.zeros(rows, width)
        of_h, of_c = (None if g is None else fold(g, WORK, width, heads) for g in (grad_h, grad_c))
        packed, zero = packed_weights(weight, heads, backward=True), torch.zeros(width)
        tensors = (of_h, of_c, dh, dc, gates, squashed, cs, d, packed, zero, restarts, held)
        launch(_lstm_backward_kernel, tensors, squashed, heads, 4)
        product = Product(weight, WORK, ctx.low, heads)
        read = zero_before(hs[:-1], restarts)
        return (
            unfold(d, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(d, read, weight) if need_weight else None,
            unfold(dh[:, :width], width, heads).to(ctx.dtypes[1]) if need_h0 else None,
            unfold(dc, width, heads).to(ctx.dtypes[2]) if need_c0 else None,
            None,
            None,
        )


class SLSTM(torch.autograd.Function):
    """As the loop of :func:`transduce.ops.slstm.slstm`."""

    @staticmethod
    def forward(ctx, pre, weight, *rest):  # noqa: ANN001, ANN205
        h0, c0, n0, m0, mask, resets = rest
        width, heads = weight.shape[1], h0.shape[1] // weight.shape[1]
        gates = fold(zero_masked(pre, mask), WORK, width, heads)
        steps, rows = gates.shape[:2]
        hs, cs, ns, ms = (initial(s, steps, width, heads) for s in (h0, c0, n0, m0))
        closing, restarts, held = empty(steps, rows, width), columns(resets, heads), columns(mask, heads, invert=True)
        packed, u, zero = packed_weights(weight, heads), empty(rows, padded(4 * width)), torch.zeros(width)
        tensors = (gates, hs, cs, ns, ms, closing, packed, u, zero, restarts, held)
        launch(_slstm_forward_kernel, tensors, closing, heads, 4)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hs, cs, ns, gates, closing, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = [x.dtype for x in (pre, weight, h0, c0, n0, m0)], low_dtype(pre), heads
        return unfold(hs[1:], width, heads), *(unfold(s[-1].clone(), width, heads) for s in (cs, ns, ms))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, *grads):  # noqa: ANN001, ANN205
        hs, cs, ns, gates, closing, weight, restarts, held = ctx.saved_tensors
        _, rows, width = closing.shape
        heads, zero = ctx.heads, torch.zeros(width)
        of_h = None if grad_h is None else fold(grad_h, WORK, width, heads)
        d, dh = torch.empty_like(gates), carried(rows, width)
        carries = [torch.zeros(rows, width) if g is None else fold(g, WORK, width, heads) for g in grads]
        packed = packed_weights(weight, heads, backward=True)
        tensors = (of_h, dh, *carries, gates, closing, hs, cs, ns, d, packed, zero, restarts, held)
        launch(_slstm_backward_kernel, tensors, closing, heads, 4)
        found = [unfold(d, width, heads) if ctx.needs_input_grad[0] else None, None]
        if ctx.needs_input_grad[1]:
            product = Product(weight, WORK, ctx.low, heads)
            found[1] = product.weight_gradient(d, zero_before(hs[:-1], restarts), weight)
        found += [unfold(s, width, heads) for s in (dh[:, :width], *carries)]
        return *(None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes)), None, None
