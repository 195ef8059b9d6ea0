"""Kernels of :mod:`transduce.ops.gated`: gates and recurrence in one pass over memory, float32 on the CPU.

A thread owns whole (batch row, block of channels) strips, as in :mod:`transduce.ops.scan_numba`. What differs from
kind to kind is a function of one row, forward and backward. Imports numba; import it lazily.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from numba import carray
from torch import Tensor

from .fastmath import F, exp, inlined, one_minus_exp, row_function, sigmoid
from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for

_STRIP_BYTES = 1024
"""As in :mod:`transduce.ops.scan_numba`: a narrower strip shares its cache lines with another thread."""
_WORK = 8
"""An element costs about eight times that of a stream."""

# A row function forward: ((x, pre, vectors), before, now, (lo, hi, width), fresh). ``vectors`` are the rows of
# parameters, ``before`` and ``now`` the state, lo..hi the channels of this strip, ``fresh`` whether a history begins.
# Backward: (grad, (x, pre, vectors), before, carry, (dx, dpre, sums), span, fresh); ``carry`` comes in as the
# gradient from later steps and leaves as that for earlier ones, ``sums`` collects the gradients of the vectors.

# ---------------------------------------------------------------- minGRU


@row_function
def _min_gru(inputs, before, now, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (lo, hi, width) = inputs, span
    gate, value = pre[lo:hi], pre[width + lo : width + hi]
    old, new = before[lo:hi], now[lo:hi]
    for j in range(hi - lo):
        new[j] = old[j] + sigmoid(gate[j]) * (value[j] - old[j])


@row_function
def _min_gru_back(grad, inputs, before, carry, gradients, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (dx, dpre, sums), (lo, hi, width) = inputs, gradients, span
    gate, value, old = pre[lo:hi], pre[width + lo : width + hi], before[lo:hi]
    g, c = grad[lo:hi], carry[lo:hi]
    d_gate, d_value = dpre[lo:hi], dpre[width + lo : width + hi]
    for j in range(hi - lo):
        z, total = sigmoid(gate[j]), g[j] + c[j]
        d_value[j] = total * z
        d_gate[j] = total * (value[j] - old[j]) * z * (F(1.0) - z)
        c[j] = total * (F(1.0) - z)


# ---------------------------------------------------------------- minLSTM


@inlined
def _keep_share(forget, write):  # noqa: ANN001, ANN202
    """f / (f + i) of the two gates' pre-activations: 1 + e^-p = e^max(-p, 0) (1 + e^-|p|), so nothing overflows
    before the ratio does."""
    away_f, away_i = max(-forget, F(0.0)), max(-write, F(0.0))
    ratio = exp(away_f - away_i) * (F(1.0) + exp(-abs(forget))) / (F(1.0) + exp(-abs(write)))
    return F(1.0) / (F(1.0) + ratio)


@row_function
def _min_lstm(inputs, before, now, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (lo, hi, width) = inputs, span
    forget, write = pre[lo:hi], pre[width + lo : width + hi]
    value, old, new = pre[2 * width + lo : 2 * width + hi], before[lo:hi], now[lo:hi]
    for j in range(hi - lo):
        new[j] = value[j] + _keep_share(forget[j], write[j]) * (old[j] - value[j])


@row_function
def _min_lstm_back(grad, inputs, before, carry, gradients, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (dx, dpre, sums), (lo, hi, width) = inputs, gradients, span
    forget, write = pre[lo:hi], pre[width + lo : width + hi]
    value, old = pre[2 * width + lo : 2 * width + hi], before[lo:hi]
    g, c = grad[lo:hi], carry[lo:hi]
    d_forget, d_write = dpre[lo:hi], dpre[width + lo : width + hi]
    d_value = dpre[2 * width + lo : 2 * width + hi]
    for j in range(hi - lo):
        keep, total = _keep_share(forget[j], write[j]), g[j] + c[j]
        d_ratio = total * (old[j] - value[j]) * keep * (F(1.0) - keep)
        d_forget[j] = d_ratio * sigmoid(-forget[j])
        d_write[j] = -d_ratio * sigmoid(-write[j])
        d_value[j] = total * (F(1.0) - keep)
        c[j] = total * keep


# ---------------------------------------------------------------- HGRU


@row_function
def _hgru(inputs, before, now, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (lo, hi, width) = inputs, span
    forget, value = pre[lo:hi], pre[width + lo : width + hi]
    room, old, new = vectors[0, lo:hi], before[lo:hi], now[lo:hi]
    for j in range(hi - lo):
        opened = room[j] * sigmoid(-forget[j])
        v = value[j]
        new[j] = old[j] + opened * (v * sigmoid(v) - old[j])


@row_function
def _hgru_back(grad, inputs, before, carry, gradients, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (dx, dpre, sums), (lo, hi, width) = inputs, gradients, span
    forget, value = pre[lo:hi], pre[width + lo : width + hi]
    room, old = vectors[0, lo:hi], before[lo:hi]
    g, c = grad[lo:hi], carry[lo:hi]
    d_forget, d_value, d_room = dpre[lo:hi], dpre[width + lo : width + hi], sums[0, lo:hi]
    for j in range(hi - lo):
        s, v, total = sigmoid(-forget[j]), value[j], g[j] + c[j]
        opened, up = room[j] * s, sigmoid(v)
        d_open = total * (v * up - old[j])
        d_room[j] += d_open * s
        d_forget[j] = -d_open * opened * (F(1.0) - s)
        d_value[j] = total * opened * up * (F(1.0) + v * (F(1.0) - up))
        c[j] = total * (F(1.0) - opened)


@row_function
def _complex_hgru(inputs, before, now, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (lo, hi, width) = inputs, span
    forget, re, im = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    room, cos, sin = vectors[0, lo:hi], vectors[1, lo:hi], vectors[2, lo:hi]
    old_re, old_im = before[lo:hi], before[width + lo : width + hi]
    new_re, new_im = now[lo:hi], now[width + lo : width + hi]
    for j in range(hi - lo):
        opened = room[j] * sigmoid(-forget[j])
        turned_re = cos[j] * old_re[j] - sin[j] * old_im[j]
        turned_im = sin[j] * old_re[j] + cos[j] * old_im[j]
        new_re[j] = turned_re + opened * (re[j] * sigmoid(re[j]) - turned_re)
        new_im[j] = turned_im + opened * (im[j] * sigmoid(im[j]) - turned_im)


@row_function
def _complex_hgru_back(grad, inputs, before, carry, gradients, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (dx, dpre, sums), (lo, hi, width) = inputs, gradients, span
    forget, re, im = pre[lo:hi], pre[width + lo : width + hi], pre[2 * width + lo : 2 * width + hi]
    room, cos, sin = vectors[0, lo:hi], vectors[1, lo:hi], vectors[2, lo:hi]
    old_re, old_im = before[lo:hi], before[width + lo : width + hi]
    g_re, g_im = grad[lo:hi], grad[width + lo : width + hi]
    c_re, c_im = carry[lo:hi], carry[width + lo : width + hi]
    d_forget, d_re, d_im = dpre[lo:hi], dpre[width + lo : width + hi], dpre[2 * width + lo : 2 * width + hi]
    d_room, d_angle = sums[0, lo:hi], sums[1, lo:hi]
    for j in range(hi - lo):
        s = sigmoid(-forget[j])
        opened = room[j] * s
        keep = F(1.0) - opened
        total_re, total_im = g_re[j] + c_re[j], g_im[j] + c_im[j]
        turned_re = cos[j] * old_re[j] - sin[j] * old_im[j]
        turned_im = sin[j] * old_re[j] + cos[j] * old_im[j]
        u, v = re[j], im[j]
        up_u, up_v = sigmoid(u), sigmoid(v)
        d_open = total_re * (u * up_u - turned_re) + total_im * (v * up_v - turned_im)
        d_room[j] += d_open * s
        d_angle[j] += keep * (total_im * turned_re - total_re * turned_im)
        d_forget[j] = -d_open * opened * (F(1.0) - s)
        d_re[j] = total_re * opened * up_u * (F(1.0) + u * (F(1.0) - up_u))
        d_im[j] = total_im * opened * up_v * (F(1.0) + v * (F(1.0) - up_v))
        c_re[j] = keep * (cos[j] * total_re + sin[j] * total_im)
        c_im[j] = keep * (cos[j] * total_im - sin[j] * total_re)


# ---------------------------------------------------------------- RG-LRU


@row_function
def _rg_lru(inputs, before, now, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (lo, hi, width) = inputs, span
    r, i, values = pre[lo:hi], pre[width + lo : width + hi], x[lo:hi]
    decay, old, new = vectors[0, lo:hi], before[lo:hi], now[lo:hi]
    for j in range(hi - lo):
        log_a = sigmoid(r[j]) * decay[j]
        scale = F(1.0) if fresh else math.sqrt(one_minus_exp(F(2.0) * log_a))
        new[j] = exp(log_a) * old[j] + scale * sigmoid(i[j]) * values[j]


@row_function
def _rg_lru_back(grad, inputs, before, carry, gradients, span, fresh):  # noqa: ANN001, ANN202
    (x, pre, vectors), (dx, dpre, sums), (lo, hi, width) = inputs, gradients, span
    r, i, values = pre[lo:hi], pre[width + lo : width + hi], x[lo:hi]
    decay, old = vectors[0, lo:hi], before[lo:hi]
    g, c = grad[lo:hi], carry[lo:hi]
    d_r, d_i, d_x, d_decay = dpre[lo:hi], dpre[width + lo : width + hi], dx[lo:hi], sums[0, lo:hi]
    for j in range(hi - lo):
        open_r, open_i, total = sigmoid(r[j]), sigmoid(i[j]), g[j] + c[j]
        log_a = open_r * decay[j]
        a, square = exp(log_a), one_minus_exp(F(2.0) * log_a)
        # d sqrt(1 - a^2) / d log a, the square root's derivative bounded by 1000
        slope = -F(2.0) * a * a / math.sqrt(max(F(4.0) * square, F(1e-6)))
        scale = F(1.0) if fresh else math.sqrt(square)
        slope = F(0.0) if fresh else slope
        gated = open_i * values[j]
        d_log = total * (old[j] * a + slope * gated)
        d_gated = total * scale
        d_decay[j] += d_log * open_r
        d_r[j] = d_log * decay[j] * open_r * (F(1.0) - open_r)
        d_i[j] = d_gated * values[j] * open_i * (F(1.0) - open_i)
        d_x[j] = d_gated * open_i
        c[j] = total * a


# ---------------------------------------------------------------- over time


@inlined
def _forward(data, row):  # noqa: ANN001, ANN202
    """tensors x, pre, vectors, h0, zeros, out, mask, resets; sizes batch, steps, width, parts, states, blocks,
    threads."""
    batch, steps, width, parts = as_size(data[8]), as_size(data[9]), as_size(data[10]), as_size(data[11])
    states, blocks, threads = as_size(data[12]), as_size(data[13]), as_size(data[14])
    has_x = as_size(data[0]) != 0
    pre = carray(data[1], (batch, steps, parts * width))
    x = carray(data[0], (batch, steps, width))
    vectors = carray(data[2], (3, width))
    h0 = carray(data[3], (batch, states * width))
    zeros = carray(data[4], (states * width,))
    out = carray(data[5], (batch, steps, states * width))
    has_mask, has_resets = as_size(data[6]) != 0, as_size(data[7]) != 0
    mask, resets = carray(as_bytes(data[6]), (batch, steps)), carray(as_bytes(data[7]), (batch, steps))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        b, block = job // blocks, job % blocks
        span = (width * block // blocks, width * (block + 1) // blocks, width)
        before = h0[b]
        for t in range(steps):
            now = out[b, t]
            if has_mask and not mask[b, t]:
                for part in range(states):
                    at = part * width
                    now[at + span[0] : at + span[1]] = before[at + span[0] : at + span[1]]
            else:
                fresh = has_resets and resets[b, t] != 0
                if fresh:
                    before = zeros
                row((x[b, t] if has_x else pre[b, t], pre[b, t], vectors), before, now, span, fresh)
            before = now


@inlined
def _backward(data, row):  # noqa: ANN001, ANN202
    """tensors x, pre, vectors, h0, zeros, out, mask, resets, grad, dx, dpre, sums (B,2,D), dh0; sizes as for
    :func:`_forward`."""
    batch, steps, width, parts = as_size(data[13]), as_size(data[14]), as_size(data[15]), as_size(data[16])
    states, blocks, threads = as_size(data[17]), as_size(data[18]), as_size(data[19])
    has_x = as_size(data[0]) != 0
    pre = carray(data[1], (batch, steps, parts * width))
    x = carray(data[0], (batch, steps, width))
    vectors = carray(data[2], (3, width))
    h0 = carray(data[3], (batch, states * width))
    zeros = carray(data[4], (states * width,))
    out = carray(data[5], (batch, steps, states * width))
    has_mask, has_resets = as_size(data[6]) != 0, as_size(data[7]) != 0
    mask, resets = carray(as_bytes(data[6]), (batch, steps)), carray(as_bytes(data[7]), (batch, steps))
    grad = carray(data[8], (batch, steps, states * width))
    dx = carray(data[9], (batch, steps, width))
    dpre = carray(data[10], (batch, steps, parts * width))
    sums = carray(data[11], (batch, 2, width))
    dh0 = carray(data[12], (batch, states * width))
    jobs, me = batch * blocks, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        b, block = job // blocks, job % blocks
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        span, carry = (lo, hi, width), dh0[b]
        for t in range(steps - 1, -1, -1):
            if has_mask and not mask[b, t]:
                for part in range(states):
                    at = part * width
                    for j in range(at + lo, at + hi):
                        carry[j] += grad[b, t, j]
                for part in range(parts):
                    dpre[b, t, part * width + lo : part * width + hi] = 0
                if has_x:
                    dx[b, t, lo:hi] = 0
                continue
            fresh = has_resets and resets[b, t] != 0
            before = h0[b]
            if t > 0:
                before = out[b, t - 1]
            if fresh:
                before = zeros
            inputs, d_inputs = pre[b, t], dpre[b, t]
            if has_x:
                inputs, d_inputs = x[b, t], dx[b, t]
            given, wanted = (inputs, pre[b, t], vectors), (d_inputs, dpre[b, t], sums[b])
            row(grad[b, t], given, before, carry, wanted, span, fresh)
            if fresh:
                for part in range(states):
                    carry[part * width + lo : part * width + hi] = 0


class _Kind(NamedTuple):
    """Both kernels, how many widths ``pre`` has, and how many the state."""

    forward: Kernel
    backward: Kernel
    parts: int
    states: int


_KINDS = {
    "min_gru": _Kind(
        Kernel(lambda data: _forward(data, _min_gru)),
        Kernel(lambda data: _backward(data, _min_gru_back)),
        2,
        1,
    ),
    "min_lstm": _Kind(
        Kernel(lambda data: _forward(data, _min_lstm)),
        Kernel(lambda data: _backward(data, _min_lstm_back)),
        3,
        1,
    ),
    "hgru": _Kind(
        Kernel(lambda data: _forward(data, _hgru)),
        Kernel(lambda data: _backward(data, _hgru_back)),
        2,
        1,
    ),
    "complex_hgru": _Kind(
        Kernel(lambda data: _forward(data, _complex_hgru)),
        Kernel(lambda data: _backward(data, _complex_hgru_back)),
        3,
        2,
    ),
    "rg_lru": _Kind(
        Kernel(lambda data: _forward(data, _rg_lru)),
        Kernel(lambda data: _backward(data, _rg_lru_back)),
        2,
        1,
    ),
}


def _vectors(kind: str, width: int, first: Tensor | None, second: Tensor | None) -> Tensor:
    """(3,D): what the row functions read. HGRU: 1 - floor, cos and sin of the angle; RG-LRU: the log decay."""
    rows = torch.zeros(3, width)
    if kind == "rg_lru":
        rows[0] = first
    else:
        rows[0] = 1.0 if first is None else 1 - first
    if second is not None:
        rows[1], rows[2] = torch.cos(second), torch.sin(second)
    return rows


def _plan(batch: int, steps: int, width: int) -> tuple[int, int]:
    """Into how many blocks the channels are cut, and the threads; as in :mod:`transduce.ops.scan_numba`."""
    threads = threads_for(_WORK * batch * steps * width)
    blocks = min(threads // math.gcd(batch, threads), max(1, 4 * width // _STRIP_BYTES))
    return blocks, min(threads, batch * blocks)


def _arguments(kind: str, width: int, work: Sequence[Tensor | None]) -> tuple[list[Tensor | None], list[int]]:
    """The first five tensors and the sizes of a launch."""
    x, pre, first, second, h0 = work
    batch, steps, _ = pre.shape
    zeros = torch.zeros(_KINDS[kind].states * width)
    start = torch.zeros(batch, len(zeros)) if h0 is None else h0
    sizes = [batch, steps, width, _KINDS[kind].parts, _KINDS[kind].states, *_plan(batch, steps, width)]
    return [x, pre, _vectors(kind, width, first, second), start, zeros], sizes


def forward(kind: str, width: int, work: Sequence[Tensor | None], flags: Sequence[Tensor | None]) -> Tensor:
    """``work`` = (x, pre, first vector, second vector, h0), float32 and contiguous, missing ones None;
    ``flags`` = (mask, resets). Returns the states (B,T,states D)."""
    tensors, sizes = _arguments(kind, width, work)
    out = torch.empty(*work[1].shape[:2], _KINDS[kind].states * width)
    if out.numel():
        _KINDS[kind].forward.launch(torch.float32, [*tensors, out, *flags], sizes, sizes[-1])
    return out


def backward(
    kind: str, width: int, grad: Tensor, out: Tensor, work: Sequence[Tensor | None], flags: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients in the order of ``work``; None for what was missing."""
    tensors, sizes = _arguments(kind, width, work)
    x, pre, first, second, h0 = work
    dx = None if x is None else torch.empty_like(x)
    dpre, dh0 = torch.empty_like(pre), torch.zeros_like(tensors[3])
    sums = torch.zeros(len(pre), 2, width)
    if out.numel():
        arguments = [*tensors, out, *flags, grad, dx, dpre, sums, dh0]
        _KINDS[kind].backward.launch(torch.float32, arguments, sizes, sizes[-1])
    d_first, d_second = sums.sum(0)
    if kind != "rg_lru":
        d_first = -d_first  # the kernel has that of 1 - floor
    return [
        dx,
        dpre,
        None if first is None else d_first,
        None if second is None else d_second,
        None if h0 is None else dh0,
    ]
