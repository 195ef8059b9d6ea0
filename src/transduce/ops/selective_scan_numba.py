"""Kernels of :func:`transduce.ops.selective_scan`: one pass over the data, states in the first-level cache.

A thread owns whole strips (a batch row, some channels). Its states, and the rates ``a`` times log2(e), lie packed:
for each block of channels that fill a vector, one vector a state. The forward pass stores the states of every
``CHUNK``-th step only; the backward pass goes through the chunks from the last, computes a chunk's decays and decayed
states again into scratch that stays in the second-level cache, and walks back over it. So nothing of size (B,T,D,N)
ever exists. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import numba
import torch
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, most_threads, thread_number
from .vectors import exp2, lanes_of, load, load_one, spread, store, total

CHUNK = 32
"""Steps between two stored states, and steps computed again at a time."""
_STRIP = 64
"""Channels of a strip: a multiple of every vector's length, so that a strip's rows are whole cache lines."""
_LOG2E, _LN2 = math.log2(math.e), math.log(2.0)
_SPARE_LANES = 16  # of the longest vector
_GAP = 80
"""Numbers between two packed strips, so that their lines do not all fall into one set of the cache."""

_inline = numba.njit(fastmath={"contract"}, error_model="numpy", inline="always")


@_inline
def _place(d, lo, hi, n, states, lanes):  # noqa: ANN001, ANN202
    """Where state n of channel d lies in a packed strip [lo, hi)."""
    block = (d - lo) // lanes * lanes
    if lo + block + lanes <= hi:
        return block * states + n * lanes + d - lo - block
    return (d - lo) * states + n


@_inline
def _pack(source, begin, packed, base, span, factor):  # noqa: ANN001, ANN202
    """(D,N) at ``begin`` of source -> packed strip at ``base``, times ``factor``."""
    lo, hi, states, lanes = span
    for d in range(lo, hi):
        for n in range(states):
            packed[base + _place(d, lo, hi, n, states, lanes)] = source[begin + d * states + n] * factor


@_inline
def _unpack(packed, base, target, begin, span):  # noqa: ANN001, ANN202
    lo, hi, states, lanes = span
    for d in range(lo, hi):
        for n in range(states):
            target[begin + d * states + n] = packed[base + _place(d, lo, hi, n, states, lanes)]


@_inline
def _fill(p, base, count):  # noqa: ANN001, ANN202
    for k in range(count):
        p[base + k] = 0


def _make_step(load_some):  # noqa: ANN001, ANN202
    """One step of the channels of one vector: reads x, dt at ``i``, packed rates and states at k."""

    @_inline
    def step(x, dt, b, c, y, scratch, at, places):  # noqa: ANN001, ANN202
        i, j, states, lanes = at
        rate, h = places
        v_dt = load_some(dt, i)
        u = v_dt * load_some(x, i)
        out = spread(u, 0)
        for n in range(states):
            decay = exp2(v_dt * load_some(scratch, rate + n * lanes))
            now = decay * load_some(scratch, h + n * lanes) + u * spread(u, b[j + n])
            store(scratch, h + n * lanes, now)
            out = out + now * spread(u, c[j + n])
        store(y, i, out)

    return step


_step, _step_one = _make_step(load), _make_step(load_one)


def _forward(data) -> None:  # noqa: ANN001
    """tensors x, dt (B,T,D), a (D,N), b, c (B,T,N), h0, h (B,D,N), y (B,T,D), marks (B,chunks,D*N) or
    None, scratch (threads,.), resets (B,T) or None; sizes batch, steps, width, states, strips, threads, room."""
    x, dt, a, b, c, h0, h, y = data[0], data[1], data[2], data[3], data[4], data[5], data[6], data[7]
    marks, keeps, scratch = data[8], as_size(data[8]) != 0, data[9]
    resets, has_resets = as_bytes(data[10]), as_size(data[10]) != 0
    batch, steps, width, states = as_size(data[11]), as_size(data[12]), as_size(data[13]), as_size(data[14])
    strips, threads, room = as_size(data[15]), as_size(data[16]), as_size(data[17])
    lanes, chunks = lanes_of(x), (steps + CHUNK - 1) // CHUNK
    me = thread_number()
    rate = me * room
    state = rate + _STRIP * states + _GAP
    jobs = batch * strips
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // strips, job % strips * _STRIP
        hi = min(width, lo + _STRIP)
        span, count = (lo, hi, states, lanes), (hi - lo) * states
        whole = lo + (hi - lo) // lanes * lanes
        _pack(a, 0, scratch, rate, span, _LOG2E)
        _pack(h0, row * width * states, scratch, state, span, 1)
        for t in range(steps):
            if keeps and t % CHUNK == 0:
                mark = ((row * chunks + t // CHUNK) * width + lo) * states
                for k in range(count):
                    marks[mark + k] = scratch[state + k]
            if has_resets and resets[row * steps + t]:
                _fill(scratch, state, count)
            i, j = (row * steps + t) * width, (row * steps + t) * states
            for d in range(lo, whole, lanes):
                k = (d - lo) * states
                _step(x, dt, b, c, y, scratch, (i + d, j, states, lanes), (rate + k, state + k))
            for d in range(whole, hi):
                k = (d - lo) * states
                _step_one(x, dt, b, c, y, scratch, (i + d, j, states, 1), (rate + k, state + k))
        _unpack(scratch, state, h, row * width * states, span)


def _make_again(load_some):  # noqa: ANN001, ANN202
    """One step once more, keeping its decays and decayed states."""

    @_inline
    def again(x, dt, b, scratch, at, places, restart):  # noqa: ANN001, ANN202
        i, j, states, lanes = at
        rate, h, decays, decayed = places
        v_dt = load_some(dt, i)
        u = v_dt * load_some(x, i)
        for n in range(states):
            k = n * lanes
            decay = exp2(v_dt * load_some(scratch, rate + k))
            kept = decay * load_some(scratch, h + k)
            if restart:
                decay = spread(u, 0)
                kept = decay
            store(scratch, decays + k, decay)
            store(scratch, decayed + k, kept)
            store(scratch, h + k, kept + u * spread(u, b[j + n]))

    return again


def _make_back(load_some):  # noqa: ANN001, ANN202
    """One step back. ``carry`` holds dL/dh of the step from the steps behind it, and then that of the step before.

    g = carry + c dy;  dc = sum dy h, db = sum g u over channels;  with u = dt x: du = sum_n b g;
    d(dt) = x du + sum_n a (g decayed),  da = sum_t dt (g decayed),  carry <- decay g.
    """

    @_inline
    def back(arrays, scratch, at, places):  # noqa: ANN001, ANN202
        x, dt, b, c, dy, dx, ddt = arrays
        i, j, states, lanes = at
        rate, carry, d_rate, decays, decayed, sum_b, sum_c, wide = places
        v_dt, v_x, v_dy = load_some(dt, i), load_some(x, i), load_some(dy, i)
        u = v_dt * v_x
        of_u = spread(u, 0)
        of_dt = of_u
        for n in range(states):
            k = n * lanes
            v_b = spread(u, b[j + n])
            g = load_some(scratch, carry + k) + v_dy * spread(u, c[j + n])
            kept = load_some(scratch, decayed + k)
            now = kept + u * v_b
            store(scratch, sum_c + n * wide, load_some(scratch, sum_c + n * wide) + v_dy * now)
            store(scratch, sum_b + n * wide, load_some(scratch, sum_b + n * wide) + u * g)
            of_u = of_u + g * v_b
            changed = g * kept
            of_dt = of_dt + changed * load_some(scratch, rate + k)
            store(scratch, d_rate + k, load_some(scratch, d_rate + k) + changed * v_dt)
            store(scratch, carry + k, load_some(scratch, decays + k) * g)
        store(dx, i, of_u * v_dt)
        store(ddt, i, of_u * v_x + of_dt * spread(u, _LN2))

    return back


_again, _again_one = _make_again(load), _make_again(load_one)
_back, _back_one = _make_back(load), _make_back(load_one)


def _backward(data) -> None:  # noqa: ANN001
    """tensors x, dt (B,T,D), a (D,N), b, c (B,T,N), marks (B,chunks,D*N), dy (B,T,D), dh (B,D,N), then
    dx, ddt (B,T,D), da (B,D,N), db, dc (B,strips,T,N), dh0 (B,D,N), scratch (threads,.), resets (B,T)
    or None; sizes batch, steps, width, states, strips, threads, room."""
    x, dt, a, b, c, marks, dy, dh = data[0], data[1], data[2], data[3], data[4], data[5], data[6], data[7]
    dx, ddt, da, db, dc, dh0, scratch = data[8], data[9], data[10], data[11], data[12], data[13], data[14]
    arrays = (x, dt, b, c, dy, dx, ddt)
    resets, has_resets = as_bytes(data[15]), as_size(data[15]) != 0
    batch, steps, width, states = as_size(data[16]), as_size(data[17]), as_size(data[18]), as_size(data[19])
    strips, threads, room = as_size(data[20]), as_size(data[21]), as_size(data[22])
    lanes, chunks = lanes_of(x), (steps + CHUNK - 1) // CHUNK
    me, packed = thread_number(), _STRIP * states + _GAP
    rate = me * room
    state, carry, d_rate = rate + packed, rate + 2 * packed, rate + 3 * packed
    decays = rate + 4 * packed
    decayed = decays + CHUNK * packed
    sum_b = decayed + CHUNK * packed
    sum_c = sum_b + states * lanes
    jobs = batch * strips
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, strip = job // strips, job % strips
        lo = strip * _STRIP
        hi = min(width, lo + _STRIP)
        span, count = (lo, hi, states, lanes), (hi - lo) * states
        whole = lo + (hi - lo) // lanes * lanes
        _pack(a, 0, scratch, rate, span, _LOG2E)
        _pack(dh, row * width * states, scratch, carry, span, 1)
        _fill(scratch, d_rate, count)
        for chunk in range(chunks - 1, -1, -1):
            first, last = chunk * CHUNK, min(steps, chunk * CHUNK + CHUNK)
            mark = ((row * chunks + chunk) * width + lo) * states
            for k in range(count):
                scratch[state + k] = marks[mark + k]
            for t in range(first, last):
                restart = has_resets and resets[row * steps + t] != 0
                i, j, s = (row * steps + t) * width, (row * steps + t) * states, (t - first) * packed
                for d in range(lo, whole, lanes):
                    k = (d - lo) * states
                    places = (rate + k, state + k, decays + s + k, decayed + s + k)
                    _again(x, dt, b, scratch, (i + d, j, states, lanes), places, restart)
                for d in range(whole, hi):
                    k = (d - lo) * states
                    places = (rate + k, state + k, decays + s + k, decayed + s + k)
                    _again_one(x, dt, b, scratch, (i + d, j, states, 1), places, restart)
            for t in range(last - 1, first - 1, -1):
                i, j, s = (row * steps + t) * width, (row * steps + t) * states, (t - first) * packed
                _fill(scratch, sum_b, 2 * states * lanes)
                for d in range(lo, whole, lanes):
                    k = (d - lo) * states
                    places = (rate + k, carry + k, d_rate + k, decays + s + k, decayed + s + k, sum_b, sum_c, lanes)
                    _back(arrays, scratch, (i + d, j, states, lanes), places)
                for d in range(whole, hi):
                    k = (d - lo) * states
                    places = (rate + k, carry + k, d_rate + k, decays + s + k, decayed + s + k, sum_b, sum_c, lanes)
                    _back_one(arrays, scratch, (i + d, j, states, 1), places)
                out = ((row * strips + strip) * steps + t) * states
                for n in range(states):
                    db[out + n] = total(load(scratch, sum_b + n * lanes))
                    dc[out + n] = total(load(scratch, sum_c + n * lanes))
        _unpack(scratch, d_rate, da, row * width * states, span)
        _unpack(scratch, carry, dh0, row * width * states, span)


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def _plan(x: Tensor) -> tuple[int, int]:
    """Strips of a row, and threads: a channel step is so much work that a second thread pays for 1000 of them."""
    batch, steps, width = x.shape
    strips = -(-width // _STRIP)
    return strips, max(1, min(most_threads(), batch * strips, batch * steps * width // 1000))


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""x, dt, a, b, c: contiguous, of one dtype."""


def forward(inputs: Inputs, h0: Tensor, resets: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y (B,T,D), h (B,D,N) and, with ``keep``, the states before every ``CHUNK``-th step."""
    x, (width, states) = inputs[0], inputs[2].shape
    batch, steps, _ = x.shape
    strips, threads = _plan(x)
    y, h = torch.empty_like(x), torch.empty_like(h0)
    marks = x.new_empty(batch, -(-steps // CHUNK), width * states) if keep else None
    room = 2 * (_STRIP * states + _GAP)
    scratch = x.new_empty(threads, room)
    sizes = [batch, steps, width, states, strips, threads, room]
    _forward_kernel.launch(x.dtype, (*inputs, h0, h, y, marks, scratch, resets), sizes, threads)
    return y, h, marks


def backward(
    inputs: Inputs, marks: Tensor, resets: Tensor | None, dy: Tensor, dh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c and h0."""
    x, (width, states) = inputs[0], inputs[2].shape
    batch, steps, _ = x.shape
    strips, threads = _plan(x)
    dx, ddt = torch.empty_like(x), torch.empty_like(x)
    da, dh0 = x.new_empty(batch, width, states), x.new_empty(batch, width, states)
    db, dc = (x.new_empty(batch, strips, steps, states) for _ in range(2))
    room = (4 + 2 * CHUNK) * (_STRIP * states + _GAP) + 2 * states * _SPARE_LANES
    scratch = x.new_empty(threads, room)
    sizes = [batch, steps, width, states, strips, threads, room]
    found = (dx, ddt, da, db, dc, dh0)
    _backward_kernel.launch(x.dtype, (*inputs, marks, dy, dh, *found, scratch, resets), sizes, threads)
    return dx, ddt, da.sum(0), db.sum(1), dc.sum(1), dh0
