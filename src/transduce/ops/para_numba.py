"""Kernels of :mod:`transduce.ops.para`: float32 on the CPU, one launch for all steps. A thread owns whole strips (batch
row, block of channels), which nobody else reads. Imports numba; import it lazily."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fastmath import row_function, sigmoid, tanh
from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for

_F = np.float32
_STRIP = 64
"""Channels that a strip has at least."""


@row_function
def _gru_row(pre, weight, h0, lo, hi, h1):  # noqa: ANN001, ANN202
    width = pre.shape[0] // 3
    a_z, a_r, a_n = weight[0, lo:hi], weight[1, lo:hi], weight[2, lo:hi]
    p_z, p_r, p_n = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    for j in range(hi - lo):
        h = h0[j]
        z, r = sigmoid(p_z[j] + a_z[j] * h), sigmoid(p_r[j] + a_r[j] * h)
        n = tanh(p_n[j] + a_n[j] * r * h)
        h1[j] = z * n + (_F(1.0) - z) * h


def _gru_forward(data) -> None:  # noqa: ANN001
    """tensors pre (B,T,3D), weight (3,D), h0, h (B,T,D), zero (D), restarts, held (B,T); sizes B, T, D, blocks,
    threads."""
    batch, steps, width = as_size(data[7]), as_size(data[8]), as_size(data[9])
    blocks, threads, me = as_size(data[10]), as_size(data[11]), thread_number()
    pre, weight = carray(data[0], (batch, steps, 3 * width)), carray(data[1], (3, width))
    h0, out, zero = carray(data[2], (batch, width)), carray(data[3], (batch, steps, width)), carray(data[4], (width,))
    has_restarts, restarts = as_size(data[5]) != 0, carray(as_bytes(data[5]), (batch, steps))
    has_held, held = as_size(data[6]) != 0, carray(as_bytes(data[6]), (batch, steps))
    jobs = batch * blocks
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        h = h0[row, lo:hi]
        for t in range(steps):
            now = out[row, t, lo:hi]
            if has_held and held[row, t]:
                now[:] = h
            else:
                if has_restarts and restarts[row, t]:
                    h = zero[lo:hi]
                _gru_row(pre[row, t], weight, h, lo, hi, now)
            h = now


@row_function
def _gru_row_back(pre, weight, h0, lo, hi, dh, d, dw):  # noqa: ANN001, ANN202
    width = pre.shape[0] // 3
    a_z, a_r, a_n = weight[0, lo:hi], weight[1, lo:hi], weight[2, lo:hi]
    p_z, p_r, p_n = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    d_z, d_r, d_n = d[lo:hi], d[width + lo : width + hi], d[2 * width + lo : 2 * width + hi]
    w_z, w_r, w_n = dw[0, lo:hi], dw[1, lo:hi], dw[2, lo:hi]
    for j in range(hi - lo):
        h, g = h0[j], dh[j]
        z, r = sigmoid(p_z[j] + a_z[j] * h), sigmoid(p_r[j] + a_r[j] * h)
        n = tanh(p_n[j] + a_n[j] * r * h)
        of_z = g * (n - h) * z * (_F(1.0) - z)
        of_n = g * z * (_F(1.0) - n * n)
        of_r = of_n * a_n[j] * h * r * (_F(1.0) - r)
        d_z[j] = of_z
        d_r[j] = of_r
        d_n[j] = of_n
        w_z[j] += of_z * h
        w_r[j] += of_r * h
        w_n[j] += of_n * r * h
        dh[j] = g * (_F(1.0) - z) + of_z * a_z[j] + of_r * a_r[j] + of_n * a_n[j] * r


def _gru_backward(data) -> None:  # noqa: ANN001
    """tensors pre, weight, h0, h, zero, restarts, held as forward, grad (B,T,D), dh (B,D), d (B,T,3D), dw (B,3,D);
    sizes B, T, D, blocks, threads."""
    batch, steps, width = as_size(data[11]), as_size(data[12]), as_size(data[13])
    blocks, threads, me = as_size(data[14]), as_size(data[15]), thread_number()
    pre, weight = carray(data[0], (batch, steps, 3 * width)), carray(data[1], (3, width))
    h0, out, zero = carray(data[2], (batch, width)), carray(data[3], (batch, steps, width)), carray(data[4], (width,))
    has_restarts, restarts = as_size(data[5]) != 0, carray(as_bytes(data[5]), (batch, steps))
    has_held, held = as_size(data[6]) != 0, carray(as_bytes(data[6]), (batch, steps))
    grad, dh = carray(data[7], (batch, steps, width)), carray(data[8], (batch, width))
    d, dw = carray(data[9], (batch, steps, 3 * width)), carray(data[10], (batch, 3, width))
    jobs = batch * blocks
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        carry = dh[row, lo:hi]
        for s in range(steps):
            t = steps - 1 - s
            carry += grad[row, t, lo:hi]
            if has_held and held[row, t]:
                for gate in range(3):
                    d[row, t, gate * width + lo : gate * width + hi] = 0
                continue
            h = out[row, t - 1, lo:hi] if t > 0 else h0[row, lo:hi]
            restarted = has_restarts and restarts[row, t]
            if restarted:
                h = zero[lo:hi]
            _gru_row_back(pre[row, t], weight, h, lo, hi, carry, d[row, t], dw[row])
            if restarted:
                carry[:] = 0


@row_function
def _lstm_row(pre, weight, h0, c0, lo, hi, h1, c1):  # noqa: ANN001, ANN202
    width = pre.shape[0] // 3
    a_f, a_g, a_o = weight[0, lo:hi], weight[1, lo:hi], weight[2, lo:hi]
    p_f, p_o = weight[3, lo:hi], weight[4, lo:hi]
    x_f, x_g, x_o = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    for j in range(hi - lo):
        h, c = h0[j], c0[j]
        f, g = sigmoid(x_f[j] + a_f[j] * h + p_f[j] * c), tanh(x_g[j] + a_g[j] * h)
        c = f * c + (_F(1.0) - f) * g
        c1[j] = c
        h1[j] = sigmoid(x_o[j] + a_o[j] * h + p_o[j] * c) * tanh(c)


def _lstm_forward(data) -> None:  # noqa: ANN001
    """tensors pre (B,T,3D), weight (5,D), h0, c0 (B,D), h, c (B,T,D), zero (D), restarts, held (B,T); sizes B, T, D,
    blocks, threads."""
    batch, steps, width = as_size(data[9]), as_size(data[10]), as_size(data[11])
    blocks, threads, me = as_size(data[12]), as_size(data[13]), thread_number()
    pre, weight = carray(data[0], (batch, steps, 3 * width)), carray(data[1], (5, width))
    h0, c0, zero = carray(data[2], (batch, width)), carray(data[3], (batch, width)), carray(data[6], (width,))
    hs, cs = carray(data[4], (batch, steps, width)), carray(data[5], (batch, steps, width))
    has_restarts, restarts = as_size(data[7]) != 0, carray(as_bytes(data[7]), (batch, steps))
    has_held, held = as_size(data[8]) != 0, carray(as_bytes(data[8]), (batch, steps))
    jobs = batch * blocks
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        h, c = h0[row, lo:hi], c0[row, lo:hi]
        for t in range(steps):
            new_h, new_c = hs[row, t, lo:hi], cs[row, t, lo:hi]
            if has_held and held[row, t]:
                new_h[:] = h
                new_c[:] = c
            else:
                if has_restarts and restarts[row, t]:
                    h, c = zero[lo:hi], zero[lo:hi]
                _lstm_row(pre[row, t], weight, h, c, lo, hi, new_h, new_c)
            h, c = new_h, new_c


@row_function
def _lstm_row_back(pre, weight, states, lo, hi, carries, d, dw):  # noqa: ANN001, ANN202
    (h0, c0, c1), (dh, dc) = states, carries
    width = pre.shape[0] // 3
    a_f, a_g, a_o = weight[0, lo:hi], weight[1, lo:hi], weight[2, lo:hi]
    p_f, p_o = weight[3, lo:hi], weight[4, lo:hi]
    x_f, x_g, x_o = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    d_f, d_g, d_o = d[lo:hi], d[width + lo : width + hi], d[2 * width + lo : 2 * width + hi]
    w_f, w_g, w_o, v_f, v_o = dw[0, lo:hi], dw[1, lo:hi], dw[2, lo:hi], dw[3, lo:hi], dw[4, lo:hi]
    for j in range(hi - lo):
        h, c, after = h0[j], c0[j], c1[j]
        f, g = sigmoid(x_f[j] + a_f[j] * h + p_f[j] * c), tanh(x_g[j] + a_g[j] * h)
        o, s = sigmoid(x_o[j] + a_o[j] * h + p_o[j] * after), tanh(after)
        of_o = dh[j] * s * o * (_F(1.0) - o)
        of_c = dc[j] + dh[j] * o * (_F(1.0) - s * s) + of_o * p_o[j]
        of_f = of_c * (c - g) * f * (_F(1.0) - f)
        of_g = of_c * (_F(1.0) - f) * (_F(1.0) - g * g)
        d_f[j] = of_f
        d_g[j] = of_g
        d_o[j] = of_o
        w_f[j] += of_f * h
        w_g[j] += of_g * h
        w_o[j] += of_o * h
        v_f[j] += of_f * c
        v_o[j] += of_o * after
        dc[j] = of_c * f + of_f * p_f[j]
        dh[j] = of_f * a_f[j] + of_g * a_g[j] + of_o * a_o[j]


def _lstm_backward(data) -> None:  # noqa: ANN001
    """tensors pre, weight, h0, c0, h, c, zero, restarts, held as forward, of_h, of_c (B,T,D; missing: zero), dh, dc
    (B,D), d (B,T,3D), dw (B,5,D); sizes B, T, D, blocks, threads."""
    batch, steps, width = as_size(data[15]), as_size(data[16]), as_size(data[17])
    blocks, threads, me = as_size(data[18]), as_size(data[19]), thread_number()
    pre, weight = carray(data[0], (batch, steps, 3 * width)), carray(data[1], (5, width))
    h0, c0, zero = carray(data[2], (batch, width)), carray(data[3], (batch, width)), carray(data[6], (width,))
    hs, cs = carray(data[4], (batch, steps, width)), carray(data[5], (batch, steps, width))
    has_restarts, restarts = as_size(data[7]) != 0, carray(as_bytes(data[7]), (batch, steps))
    has_held, held = as_size(data[8]) != 0, carray(as_bytes(data[8]), (batch, steps))
    has_h, of_h = as_size(data[9]) != 0, carray(data[9], (batch, steps, width))
    has_c, of_c = as_size(data[10]) != 0, carray(data[10], (batch, steps, width))
    dh, dc = carray(data[11], (batch, width)), carray(data[12], (batch, width))
    d, dw = carray(data[13], (batch, steps, 3 * width)), carray(data[14], (batch, 5, width))
    jobs = batch * blocks
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        mine_h, mine_c = dh[row, lo:hi], dc[row, lo:hi]
        for s in range(steps):
            t = steps - 1 - s
            if has_h:
                mine_h += of_h[row, t, lo:hi]
            if has_c:
                mine_c += of_c[row, t, lo:hi]
            if has_held and held[row, t]:
                for gate in range(3):
                    d[row, t, gate * width + lo : gate * width + hi] = 0
                continue
            h = hs[row, t - 1, lo:hi] if t > 0 else h0[row, lo:hi]
            c = cs[row, t - 1, lo:hi] if t > 0 else c0[row, lo:hi]
            restarted = has_restarts and restarts[row, t]
            if restarted:
                h, c = zero[lo:hi], zero[lo:hi]
            read = (h, c, cs[row, t, lo:hi])
            _lstm_row_back(pre[row, t], weight, read, lo, hi, (mine_h, mine_c), d[row, t], dw[row])
            if restarted:
                mine_h[:] = 0
                mine_c[:] = 0


_gru_forward_kernel, _gru_backward_kernel = Kernel(_gru_forward), Kernel(_gru_backward)
_lstm_forward_kernel, _lstm_backward_kernel = Kernel(_lstm_forward), Kernel(_lstm_backward)


def _launch(kernel: Kernel, tensors: Sequence[Tensor | None], like: Tensor) -> None:
    batch, steps, width = like.shape
    threads = threads_for(8 * like.numel())
    blocks = max(1, min(-(-threads // max(1, batch)), width // _STRIP))
    threads = max(1, min(threads, batch * blocks))
    kernel.launch(torch.float32, tensors, (batch, steps, width, blocks, threads), threads)


def _plain(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.float32).contiguous() for t in tensors]


def _marks(pre: Tensor, mask: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """zero, restarts, held"""
    restarts = None if resets is None else resets.contiguous()
    return torch.zeros(pre.shape[2] // 3), restarts, None if mask is None else (~mask).contiguous()


class ParaGRU(torch.autograd.Function):
    """See :func:`transduce.ops.para.para_gru`."""

    @staticmethod
    def forward(ctx, pre, weight, h0, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        ctx.dtypes = [x.dtype for x in (pre, weight, h0)]
        pre, weight, h0 = _plain(pre, weight, h0)
        out = torch.empty(*pre.shape[:2], weight.shape[1])
        saved = (pre, weight, h0, out, *_marks(pre, mask, resets))
        _launch(_gru_forward_kernel, saved, out)
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        saved = ctx.saved_tensors
        pre, weight, h0 = saved[:3]
        dh, d, dw = torch.zeros_like(h0), torch.empty_like(pre), pre.new_zeros(len(pre), *weight.shape)
        _launch(_gru_backward_kernel, (*saved, grad.contiguous(), dh, d, dw), saved[3])
        found = (d, dw.sum(0), dh)
        return *(g.to(dtype) for g, dtype in zip(found, ctx.dtypes)), None, None


class ParaLSTM(torch.autograd.Function):
    """See :func:`transduce.ops.para.para_lstm`."""

    @staticmethod
    def forward(ctx, pre, weight, h0, c0, mask, resets):  # noqa: ANN001, ANN205
        ctx.dtypes = [x.dtype for x in (pre, weight, h0, c0)]
        pre, weight, h0, c0 = _plain(pre, weight, h0, c0)
        hs, cs = (torch.empty(*pre.shape[:2], weight.shape[1]) for _ in range(2))
        saved = (pre, weight, h0, c0, hs, cs, *_marks(pre, mask, resets))
        _launch(_lstm_forward_kernel, saved, hs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        return hs, cs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # noqa: ANN001, ANN205
        saved = ctx.saved_tensors
        pre, weight, h0, c0 = saved[:4]
        dh, dc, d = torch.zeros_like(h0), torch.zeros_like(c0), torch.empty_like(pre)
        dw = pre.new_zeros(len(pre), *weight.shape)
        outer = [None if g is None else g.contiguous() for g in grads]
        _launch(_lstm_backward_kernel, (*saved, *outer, dh, dc, d, dw), saved[4])
        found = (d, dw.sum(0), dh, dc)
        return *(g.to(dtype) for g, dtype in zip(found, ctx.dtypes)), None, None
