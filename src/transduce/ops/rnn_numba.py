"""Recurrent loops whose gates are one compiled pass a step, for :mod:`transduce.ops.rnn`: float32 on the CPU.

torch's tanh and sigmoid take a third of a step beside the product with the weights, and each of the eight
elementwise operations of a step has its overhead; here they are one kernel forward and one backward, with an
exponential that vectorises. Layout and treatment of masks are those of :mod:`transduce.ops.rnn_loop`. Imports
numba; import it lazily.
"""

from __future__ import annotations

import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fastmath import F as _F
from .fastmath import row_function as _row
from .fastmath import sigmoid as _sigmoid
from .fastmath import tanh as _tanh
from .kernels import Kernel, as_size, thread_number, threads_for
from .rnn_loop import (
    INF,
    Product,
    columns,
    fold,
    held_pre,
    low_dtype,
    of_head,
    sum_by_head,
    unfold,
    zero_before,
)

# ---------------------------------------------------------------- GRU


@_row
def _gru_row(u, bias, before, gates, inner, after):  # noqa: ANN001, ANN202
    width = bias.shape[0]
    u_r, u_z, u_n = u[:width], u[width : 2 * width], u[2 * width :]
    r_out, z_out, n_out = gates[:width], gates[width : 2 * width], gates[2 * width :]
    for j in range(width):
        product = u_n[j] + bias[j]
        r = _sigmoid(r_out[j] + u_r[j])
        z = _sigmoid(z_out[j] + u_z[j])
        n = _tanh(n_out[j] + r * product)
        r_out[j] = r
        z_out[j] = z
        n_out[j] = n
        inner[j] = product
        after[j] = (_F(1.0) - z) * n + z * before[j]


def _gru_forward(data) -> None:  # noqa: ANN001
    """tensors u (B,3D), bias (B,D), before (B,D; missing: states[t]), gates (T,B,3D), inner (T,B,D), states
    (T+1,B,D); sizes B, D, threads, t."""
    batch, width, threads, t = as_size(data[6]), as_size(data[7]), as_size(data[8]), as_size(data[9])
    u, bias = carray(data[0], (batch, 3 * width)), carray(data[1], (batch, width))
    before, restarted = carray(data[2], (batch, width)), as_size(data[2]) != 0
    gates = carray(data[3], (t + 1, batch, 3 * width))
    inner = carray(data[4], (t + 1, batch, width))
    states = carray(data[5], (t + 2, batch, width))
    me = thread_number()
    for i in range(batch * me // threads, batch * (me + 1) // threads):
        row = before[i] if restarted else states[t, i]
        _gru_row(u[i], bias[i], row, gates[t, i], inner[t, i], states[t + 1, i])


@_row
def _gru_row_back(dh, carry, gates, inner, before, d, dn_out):  # noqa: ANN001, ANN202
    width = dh.shape[0]
    r_in, z_in, n_in = gates[:width], gates[width : 2 * width], gates[2 * width :]
    d_r, d_z, d_n = d[:width], d[width : 2 * width], d[2 * width :]
    for j in range(width):
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
    """tensors dh (T,B,D), carry (B,D), gates (T,B,3D), inner, read (T,B,D), d (T,B,3D), dn (T,B,D); sizes B,
    D, threads, t."""
    batch, width, threads, t = as_size(data[7]), as_size(data[8]), as_size(data[9]), as_size(data[10])
    dh, carry = carray(data[0], (t + 1, batch, width)), carray(data[1], (batch, width))
    gates, inner = carray(data[2], (t + 1, batch, 3 * width)), carray(data[3], (t + 1, batch, width))
    read, d = carray(data[4], (t + 1, batch, width)), carray(data[5], (t + 1, batch, 3 * width))
    dn = carray(data[6], (t + 1, batch, width))
    me = thread_number()
    for i in range(batch * me // threads, batch * (me + 1) // threads):
        _gru_row_back(dh[t, i], carry[i], gates[t, i], inner[t, i], read[t, i], d[t, i], dn[t, i])


# ---------------------------------------------------------------- LSTM


@_row
def _lstm_row(u, before, gates, memory, squashed, after):  # noqa: ANN001, ANN202
    width = before.shape[0]
    u_i, u_f, u_g, u_o = u[:width], u[width : 2 * width], u[2 * width : 3 * width], u[3 * width :]
    i_out, f_out = gates[:width], gates[width : 2 * width]
    g_out, o_out = gates[2 * width : 3 * width], gates[3 * width :]
    for j in range(width):
        i = _sigmoid(i_out[j] + u_i[j])
        f = _sigmoid(f_out[j] + u_f[j])
        g = _tanh(g_out[j] + u_g[j])
        o = _sigmoid(o_out[j] + u_o[j])
        c = f * before[j] + i * g
        s = _tanh(c)
        i_out[j] = i
        f_out[j] = f
        g_out[j] = g
        o_out[j] = o
        memory[j] = c
        squashed[j] = s
        after[j] = o * s


def _lstm_forward(data) -> None:  # noqa: ANN001
    """tensors u (B,4D), before (B,D; missing: cs[t]), gates (T,B,4D), cs (T+1,B,D), squashed (T,B,D),
    hs (T+1,B,D); sizes B, D, threads, t."""
    batch, width, threads, t = as_size(data[6]), as_size(data[7]), as_size(data[8]), as_size(data[9])
    u, before = carray(data[0], (batch, 4 * width)), carray(data[1], (batch, width))
    restarted = as_size(data[1]) != 0
    gates = carray(data[2], (t + 1, batch, 4 * width))
    cs, hs = carray(data[3], (t + 2, batch, width)), carray(data[5], (t + 2, batch, width))
    squashed = carray(data[4], (t + 1, batch, width))
    me = thread_number()
    for i in range(batch * me // threads, batch * (me + 1) // threads):
        row = before[i] if restarted else cs[t, i]
        _lstm_row(u[i], row, gates[t, i], cs[t + 1, i], squashed[t, i], hs[t + 1, i])


@_row
def _lstm_row_back(dh, dc, gates, squashed, before, d):  # noqa: ANN001, ANN202
    width = dh.shape[0]
    i_in, f_in, g_in, o_in = (
        gates[:width],
        gates[width : 2 * width],
        gates[2 * width : 3 * width],
        gates[3 * width :],
    )
    d_i, d_f, d_g, d_o = d[:width], d[width : 2 * width], d[2 * width : 3 * width], d[3 * width :]
    for j in range(width):
        i, f, g, o, s, of_h = i_in[j], f_in[j], g_in[j], o_in[j], squashed[j], dh[j]
        of_c = dc[j] + of_h * o * (_F(1.0) - s * s)
        d_i[j] = of_c * g * i * (_F(1.0) - i)
        d_f[j] = of_c * before[j] * f * (_F(1.0) - f)
        d_g[j] = of_c * i * (_F(1.0) - g * g)
        d_o[j] = of_h * s * o * (_F(1.0) - o)
        dc[j] = of_c * f


def _lstm_backward(data) -> None:  # noqa: ANN001
    """tensors dh, dc (B,D), gates (T,B,4D), squashed, read (T,B,D), d (T,B,4D); sizes B, D, threads, t."""
    batch, width, threads, t = as_size(data[6]), as_size(data[7]), as_size(data[8]), as_size(data[9])
    dh, dc = carray(data[0], (batch, width)), carray(data[1], (batch, width))
    gates, d = carray(data[2], (t + 1, batch, 4 * width)), carray(data[5], (t + 1, batch, 4 * width))
    squashed, read = carray(data[3], (t + 1, batch, width)), carray(data[4], (t + 1, batch, width))
    me = thread_number()
    for i in range(batch * me // threads, batch * (me + 1) // threads):
        _lstm_row_back(dh[i], dc[i], gates[t, i], squashed[t, i], read[t, i], d[t, i])


_gru_forward_kernel, _gru_backward_kernel = Kernel(_gru_forward), Kernel(_gru_backward)
_lstm_forward_kernel, _lstm_backward_kernel = Kernel(_lstm_forward), Kernel(_lstm_backward)


def _threads(h: Tensor) -> int:
    """An element of a step is about eight times the work of one of a stream."""
    return min(threads_for(8 * h.numel()), max(1, h.shape[0]))


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


class GRU(torch.autograd.Function):
    """As :class:`transduce.ops.rnn_loop.GRU`."""

    @staticmethod
    def forward(ctx, pre, weight, bias, h0, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        width, work, low = weight.shape[1], torch.float32, low_dtype(pre)
        heads = h0.shape[1] // width
        product = Product(weight, work, low, heads)
        gates = held_pre(pre, mask, work, (0.0, INF, 0.0), heads)
        steps, rows = gates.shape[:2]
        u, inner, states = (
            _empty(rows, 3 * width),
            _empty(steps, rows, width),
            _empty(steps + 1, rows, width),
        )
        states[0] = fold(h0, work, width, heads)
        restarts = columns(resets, heads)
        before = None if restarts is None else torch.empty_like(states[0])
        threads = _threads(states[0])
        tensors = (u, of_head(bias.to(work), rows, heads).contiguous(), before, gates, inner, states)
        step = _gru_forward_kernel.prepare(work, tensors, (rows, width, threads, 0), threads)
        for t, h in enumerate(states.unbind(0)[:-1]):
            if before is not None:
                h = before.copy_(h).masked_fill_(restarts[t], 0)
            product.forward_into(u, h)
            step.set_last(t)
            step()
        ctx.save_for_backward(states, gates, inner, weight, restarts)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, bias.dtype, h0.dtype), low, heads
        return unfold(states[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, gates, inner, weight, restarts = ctx.saved_tensors
        need_pre, need_weight, need_bias, need_h0 = ctx.needs_input_grad[:4]
        steps, rows, width = inner.shape
        heads = ctx.heads
        product = Product(weight, inner.dtype, ctx.low, heads)
        read = zero_before(states[:-1], restarts)
        d, dn, carry = (
            _empty(steps, rows, 3 * width),
            _empty(steps, rows, width),
            torch.zeros_like(states[0]),
        )
        threads = _threads(carry)
        tensors = (fold(grad, inner.dtype, width, heads), carry, gates, inner, read, d, dn)
        step = _gru_backward_kernel.prepare(inner.dtype, tensors, (rows, width, threads, 0), threads)
        d_steps = d.unbind(0)
        for t in reversed(range(steps)):
            step.set_last(t)
            step()
            product.add_backward(carry, d_steps[t])
            if restarts is not None:
                carry.masked_fill_(restarts[t], 0)
        dpre = None
        if need_pre:
            whole = heads * width
            dpre = torch.empty(rows // heads, steps, 3 * whole, dtype=ctx.dtypes[0])
            dpre[..., : 2 * whole].copy_(unfold(d[..., : 2 * width], width, heads))
            dpre[..., 2 * whole :].copy_(unfold(dn, width, heads))
        return (
            dpre,
            product.weight_gradient(d, read, weight) if need_weight else None,
            sum_by_head(d[..., 2 * width :], heads).to(ctx.dtypes[1]) if need_bias else None,
            unfold(carry, width, heads).to(ctx.dtypes[2]) if need_h0 else None,
            None,
            None,
        )


class LSTM(torch.autograd.Function):
    """As :class:`transduce.ops.rnn_loop.LSTM`."""

    @staticmethod
    def forward(ctx, pre, weight, h0, c0, mask, resets):  # noqa: ANN001, ANN205
        width, work, low = weight.shape[1], torch.float32, low_dtype(pre)
        heads = h0.shape[1] // width
        product = Product(weight, work, low, heads)
        gates = held_pre(pre, mask, work, (-INF, INF, 0.0, -INF), heads)
        steps, rows = gates.shape[:2]
        u, squashed = _empty(rows, 4 * width), _empty(steps, rows, width)
        hs, cs = (_empty(steps + 1, rows, width) for _ in range(2))
        hs[0], cs[0] = fold(h0, work, width, heads), fold(c0, work, width, heads)
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        before = None if restarts is None else torch.empty_like(cs[0])
        threads = _threads(cs[0])
        tensors = (u, before, gates, cs, squashed, hs)
        step = _lstm_forward_kernel.prepare(work, tensors, (rows, width, threads, 0), threads)
        h_steps, c_steps = hs.unbind(0), cs.unbind(0)
        for t in range(steps):
            h = h_steps[t]
            if before is not None:
                h = torch.where(restarts[t], 0, h)
                before.copy_(c_steps[t]).masked_fill_(restarts[t], 0)
            product.forward_into(u, h)
            step.set_last(t)
            step()
            if held is not None:
                torch.where(held[t], h, h_steps[t + 1], out=h_steps[t + 1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hs, cs, gates, squashed, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, h0.dtype, c0.dtype), low, heads
        return unfold(hs[1:], width, heads), unfold(cs[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_c):  # noqa: ANN001, ANN205
        hs, cs, gates, squashed, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0, need_c0 = ctx.needs_input_grad[:4]
        steps, rows, width = squashed.shape
        heads = ctx.heads
        product = Product(weight, squashed.dtype, ctx.low, heads)
        read_h, read_c = zero_before(hs[:-1], restarts), zero_before(cs[:-1], restarts)
        d, dh, dc = _empty(steps, rows, 4 * width), torch.zeros_like(hs[0]), torch.zeros_like(cs[0])
        threads = _threads(dh)
        tensors = (dh, dc, gates, squashed, read_c, d)
        step = _lstm_backward_kernel.prepare(d.dtype, tensors, (rows, width, threads, 0), threads)
        dh_out = None if grad_h is None else fold(grad_h, d.dtype, width, heads).unbind(0)
        dc_out = None if grad_c is None else fold(grad_c, d.dtype, width, heads).unbind(0)
        d_steps = d.unbind(0)
        for t in reversed(range(steps)):
            if dh_out is not None:
                dh.add_(dh_out[t])
            if dc_out is not None:
                dc.add_(dc_out[t])
            step.set_last(t)
            step()
            if held is None:
                product.backward_into(dh, d_steps[t])
            else:
                dh.masked_fill_(~held[t], 0)
                product.add_backward(dh, d_steps[t])
            if restarts is not None:
                dh.masked_fill_(restarts[t], 0)
                dc.masked_fill_(restarts[t], 0)
        return (
            unfold(d, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(d, read_h, weight) if need_weight else None,
            unfold(dh, width, heads).to(ctx.dtypes[1]) if need_h0 else None,
            unfold(dc, width, heads).to(ctx.dtypes[2]) if need_c0 else None,
            None,
            None,
        )
