"""Kernels of :func:`transduce.ops.grid_scan.grid_scan`: the cells row by row, one matrix a column in cache.

A thread owns whole (batch row, head) grids. For the backward pass the forward pass writes down what entered each cell;
the backward pass walks the cells in the opposite order with the gradients of their outgoing edges. Imports numba;
import it lazily.
"""

from __future__ import annotations

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_size, thread_number, threads_for

_WORK_PER_ENTRY = 8
"""Arithmetic for each entry of a state, against that of a streaming kernel."""


def _forward(data) -> None:  # noqa: ANN001
    """tensors q, k, v, gates, y, states (or none), scratch; sizes batch, rows, columns, heads, K, V, threads.

    Scratch has for each thread the states above every column and the one to the left, one behind the other."""
    batch, rows, columns, heads = as_size(data[7]), as_size(data[8]), as_size(data[9]), as_size(data[10])
    keys, values, threads = as_size(data[11]), as_size(data[12]), as_size(data[13])
    q = carray(data[0], (batch, rows, columns, heads, keys))
    k = carray(data[1], (batch, rows, columns, heads, keys))
    v = carray(data[2], (batch, rows, columns, heads, values))
    gates = carray(data[3], (batch, rows, columns, heads, 9))
    out = carray(data[4], (batch, rows, columns, heads, values))
    keeps = as_size(data[5]) != 0
    states = carray(data[5], (batch, rows, columns, heads, 2, keys, values))
    jobs, me = batch * heads, thread_number()
    scratch = carray(data[6], (threads, columns + 1, keys, values))[me]
    above, left = scratch[:columns], scratch[columns]
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head = job // heads, job % heads
        above[:] = 0
        for y in range(rows):
            left[:] = 0
            for x in range(columns):
                g, query, key = gates[row, y, x, head], q[row, y, x, head], k[row, y, x, head]
                value, answer = v[row, y, x, head], out[row, y, x, head]
                up = above[x]
                s_r, s_d, t_lr, t_ud, t_ld, t_ur, m_l, m_u, d = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]
                answer[:] = 0
                for i in range(keys):
                    key_i, query_i, from_left, from_up = key[i], query[i], left[i], up[i]
                    if keeps:
                        states[row, y, x, head, 0, i] = from_left
                        states[row, y, x, head, 1, i] = from_up
                    for j in range(values):
                        kv, a, b = key_i * value[j], from_left[j], from_up[j]
                        answer[j] += query_i * (d * kv + m_l * a + m_u * b)
                        from_left[j] = s_r * kv + t_lr * a + t_ur * b
                        from_up[j] = s_d * kv + t_ud * b + t_ld * a


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, q, k, v, gates, states, dq, dk, dv, dgates, scratch; sizes as in the forward kernel.

    Scratch has for each thread the gradients of the edges down of every column, and of the edge to the right."""
    batch, rows, columns, heads = as_size(data[11]), as_size(data[12]), as_size(data[13]), as_size(data[14])
    keys, values, threads = as_size(data[15]), as_size(data[16]), as_size(data[17])
    grad = carray(data[0], (batch, rows, columns, heads, values))
    q = carray(data[1], (batch, rows, columns, heads, keys))
    k = carray(data[2], (batch, rows, columns, heads, keys))
    v = carray(data[3], (batch, rows, columns, heads, values))
    gates = carray(data[4], (batch, rows, columns, heads, 9))
    states = carray(data[5], (batch, rows, columns, heads, 2, keys, values))
    dq = carray(data[6], (batch, rows, columns, heads, keys))
    dk = carray(data[7], (batch, rows, columns, heads, keys))
    dv = carray(data[8], (batch, rows, columns, heads, values))
    dgates = carray(data[9], (batch, rows, columns, heads, 9))
    jobs, me = batch * heads, thread_number()
    scratch = carray(data[10], (threads, columns + 1, keys, values))[me]
    below, right = scratch[:columns], scratch[columns]
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head = job // heads, job % heads
        below[:] = 0
        for y in range(rows - 1, -1, -1):
            right[:] = 0
            for x in range(columns - 1, -1, -1):
                g, dg = gates[row, y, x, head], dgates[row, y, x, head]
                query, key, value = q[row, y, x, head], k[row, y, x, head], v[row, y, x, head]
                dy, dvalue = grad[row, y, x, head], dv[row, y, x, head]
                s_r, s_d, t_lr, t_ud, t_ld, t_ur, m_l, m_u, d = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]
                dvalue[:] = 0
                dg[:] = 0
                for i in range(keys):
                    key_i, query_i = key[i], query[i]
                    lefts, ups = states[row, y, x, head, 0, i], states[row, y, x, head, 1, i]
                    rights, downs = right[i], below[x, i]
                    zero = key_i * 0
                    dkey, dquery = zero, zero
                    # what each gate multiplies, summed over this line of the states
                    p_sr, p_sd, p_lr, p_ud, p_ld, p_ur, p_ml, p_mu, p_d = (
                        zero, zero, zero, zero, zero, zero, zero, zero, zero,
                    )  # fmt: skip
                    for j in range(values):
                        a, b, to_right, to_down = lefts[j], ups[j], rights[j], downs[j]
                        kv, read = key_i * value[j], query_i * dy[j]
                        dkv = d * read + s_r * to_right + s_d * to_down
                        dkey += dkv * value[j]
                        dvalue[j] += dkv * key_i
                        dquery += dy[j] * (d * kv + m_l * a + m_u * b)
                        p_sr += to_right * kv
                        p_sd += to_down * kv
                        p_lr += to_right * a
                        p_ud += to_down * b
                        p_ld += to_down * a
                        p_ur += to_right * b
                        p_ml += read * a
                        p_mu += read * b
                        p_d += read * kv
                        rights[j] = m_l * read + t_lr * to_right + t_ld * to_down
                        downs[j] = m_u * read + t_ud * to_down + t_ur * to_right
                    dq[row, y, x, head, i] = dquery
                    dk[row, y, x, head, i] = dkey
                    dg[0] += p_sr
                    dg[1] += p_sd
                    dg[2] += p_lr
                    dg[3] += p_ud
                    dg[4] += p_ld
                    dg[5] += p_ur
                    dg[6] += p_ml
                    dg[7] += p_mu
                    dg[8] += p_d


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _threads(q: Tensor, values: int) -> int:
    return min(threads_for(q.numel() * values * _WORK_PER_ENTRY), q.shape[0] * q.shape[3])


def forward(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """y and, with ``keep``, what entered each cell (B,Y,X,H,2,K,V). Arguments contiguous and of one dtype."""
    out = torch.empty_like(v)
    states = q.new_empty(*q.shape[:4], 2, q.shape[4], v.shape[4]) if keep else None
    if out.numel():
        threads = _threads(q, v.shape[4])
        scratch = q.new_empty(threads, q.shape[2] + 1, q.shape[4], v.shape[4])
        sizes = [*q.shape, v.shape[4], threads]
        _forward_kernel.launch(q.dtype, (q, k, v, gates, out, states, scratch), sizes, threads)
    return out, states


def backward(grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gates from ``saved`` = (q, k, v, gates, states)."""
    q, k, v, gates, _ = saved
    found = tuple(map(torch.zeros_like, (q, k, v, gates)))
    if grad.numel():
        threads = _threads(q, v.shape[4])
        scratch = q.new_empty(threads, q.shape[2] + 1, q.shape[4], v.shape[4])
        sizes = [*q.shape, v.shape[4], threads]
        _backward_kernel.launch(q.dtype, (grad, *saved, *found, scratch), sizes, threads)
    return found
