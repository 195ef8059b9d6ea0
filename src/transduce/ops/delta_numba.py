"""Kernels of :func:`transduce.ops.delta_general.generalised_delta_rule`. A thread owns whole heads of rows.

The memory of a head lies in the first-level cache, a row of key channels for each value j, and vectors run over the
channels, which the caller has padded to whole ones. With p_j = e . s_j before the step::

    s_j <- w s_j - p_j r + v_j k        y_j = q . s_j

The forward pass stores the memory of every ``CHUNK``-th step. The backward pass goes through the chunks from the last,
computes the memories of a chunk again and walks back over them; with A_j = dL/ds_j after the step::

    A_j += q dy_j     dq = sum_j s_j' dy_j     dv_j = A_j . k     dk = sum_j A_j v_j     dp_j = -A_j . r
    dr = -sum_j A_j p_j     de = sum_j s_j dp_j     dw = sum_j A_j s_j     A_j <- w A_j + e dp_j

Imports numba; import it lazily.
"""

from __future__ import annotations

from typing import Sequence

import numba
import torch
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .vectors import lanes_of, load, spread, store, total

CHUNK = 16
"""Steps between two stored memories, and steps computed again at a time."""
_LINE_BYTES = 64

_inline = numba.njit(fastmath={"contract"}, error_model="numpy", inline="always")


@_inline
def _dot(p, i, q, j, width):  # noqa: ANN001, ANN202
    lanes = lanes_of(p)
    found = load(p, i) * load(q, j)
    for b in range(lanes, width, lanes):
        found = found + load(p, i + b) * load(q, j + b)
    return total(found)


@_inline
def _copy(p, i, q, j, count):  # noqa: ANN001, ANN202
    for b in range(count):
        q[j + b] = p[i + b]


@_inline
def _clear(p, i, count):  # noqa: ANN001, ANN202
    for b in range(count):
        p[i + b] = 0


@_inline
def _write(inputs, i, scratch, places, sizes):  # noqa: ANN001, ANN202
    """Step i from the memory at ``old`` to that at ``new`` (may be the same place), keeping every p_j at ``held``."""
    _, k, v, w, removal = inputs
    old, new, held = places
    width, values = sizes
    lanes, e, r = lanes_of(k), 2 * i * width, (2 * i + 1) * width
    for j in range(values):
        p = _dot(scratch, old + j * width, removal, e, width)
        scratch[held + j] = p
        value = v[i * values + j]
        for b in range(0, width, lanes):
            s = load(scratch, old + j * width + b) * load(w, i * width + b)
            s = s - load(removal, r + b) * spread(s, p)
            store(scratch, new + j * width + b, s + load(k, i * width + b) * spread(s, value))


def _forward(data) -> None:  # noqa: ANN001
    """tensors q, k, v, w, removal, s0 (B,H,V,K), y, s, marks (B,H,chunks,V,K) or None, resets or None, scratch; sizes
    batch, steps, heads, width, values, threads, room."""
    inputs = data[0], data[1], data[2], data[3], data[4]
    q, s0, y, s, marks, resets, scratch = (
        data[0], data[5], data[6], data[7], data[8], as_bytes(data[9]), data[10],
    )  # fmt: skip
    keeps, has_resets = as_size(data[8]) != 0, as_size(data[9]) != 0
    batch, steps, heads, width = as_size(data[11]), as_size(data[12]), as_size(data[13]), as_size(data[14])
    values, threads, room = as_size(data[15]), as_size(data[16]), as_size(data[17])
    area, chunks, me = width * values, (steps + CHUNK - 1) // CHUNK, thread_number()
    state = me * room
    places = state, state, state + area
    jobs = batch * heads
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head = job // heads, job % heads
        _copy(s0, job * area, scratch, state, area)
        for t in range(steps):
            if keeps and t % CHUNK == 0:
                _copy(scratch, state, marks, (job * chunks + t // CHUNK) * area, area)
            if has_resets and resets[row * steps + t]:
                _clear(scratch, state, area)
            i = (row * steps + t) * heads + head
            _write(inputs, i, scratch, places, (width, values))
            for j in range(values):
                y[i * values + j] = _dot(q, i * width, scratch, state + j * width, width)
        _copy(scratch, state, s, job * area, area)


@_inline
def _unwrite(inputs, dy, ds, grads, i, scratch, places, sizes):  # noqa: ANN001, ANN202
    """Step i backwards: ``ds`` at ``place`` from the memory behind the step to the one before it."""
    q, k, v, w, removal = inputs
    dq, dk, dv, dw, dremoval = grads
    old, new, held, asked, place = places
    width, values = sizes
    lanes, at, e, r = lanes_of(q), i * width, 2 * i * width, (2 * i + 1) * width
    for j in range(values):
        row, d = place + j * width, dy[i * values + j]
        on_k = spread(load(q, at), 0)
        on_r = on_k
        for b in range(0, width, lanes):
            a = load(ds, row + b) + load(q, at + b) * spread(on_k, d)
            store(ds, row + b, a)
            on_k = on_k + a * load(k, at + b)
            on_r = on_r + a * load(removal, r + b)
        dv[i * values + j] = total(on_k)
        scratch[asked + j] = -total(on_r)
    for b in range(0, width, lanes):
        of_q = spread(load(q, at), 0)
        of_k, of_w, of_e, of_r = of_q, of_q, of_q, of_q
        fade, ask = load(w, at + b), load(removal, e + b)
        for j in range(values):
            a, before = load(ds, place + j * width + b), load(scratch, old + j * width + b)
            asks = spread(of_q, scratch[asked + j])
            of_q = of_q + load(scratch, new + j * width + b) * spread(of_q, dy[i * values + j])
            of_k = of_k + a * spread(of_q, v[i * values + j])
            of_w = of_w + a * before
            of_e = of_e + before * asks
            of_r = of_r - a * spread(of_q, scratch[held + j])
            store(ds, place + j * width + b, fade * a + ask * asks)
        store(dq, at + b, of_q)
        store(dk, at + b, of_k)
        store(dw, at + b, of_w)
        store(dremoval, e + b, of_e)
        store(dremoval, r + b, of_r)


def _backward(data) -> None:  # noqa: ANN001
    """tensors q, k, v, w, removal, marks, dy, ds (in: by the last memory, out: by the first), dq, dk, dv, dw, dremoval,
    resets or None, scratch; sizes as for the forward kernel."""
    inputs = data[0], data[1], data[2], data[3], data[4]
    marks, dy, ds = data[5], data[6], data[7]
    grads = data[8], data[9], data[10], data[11], data[12]
    resets, has_resets, scratch = as_bytes(data[13]), as_size(data[13]) != 0, data[14]
    batch, steps, heads, width = as_size(data[15]), as_size(data[16]), as_size(data[17]), as_size(data[18])
    values, threads, room = as_size(data[19]), as_size(data[20]), as_size(data[21])
    area, chunks, me = width * values, (steps + CHUNK - 1) // CHUNK, thread_number()
    # Two memories a step, before and after it: behind a reset they are not the neighbours'.
    states = me * room
    helds = states + 2 * CHUNK * area
    asked = helds + CHUNK * values
    jobs = batch * heads
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head = job // heads, job % heads
        for chunk in range(chunks - 1, -1, -1):
            begin, end = chunk * CHUNK, min(steps, (chunk + 1) * CHUNK)
            _copy(marks, (job * chunks + chunk) * area, scratch, states, area)
            for c in range(end - begin):
                old, new = states + 2 * c * area, states + (2 * c + 1) * area
                if has_resets and resets[row * steps + begin + c]:
                    _clear(scratch, old, area)
                i = (row * steps + begin + c) * heads + head
                _write(inputs, i, scratch, (old, new, helds + c * values), (width, values))
                if c + 1 < end - begin:
                    _copy(scratch, new, scratch, new + area, area)
            for c in range(end - begin - 1, -1, -1):
                old, new = states + 2 * c * area, states + (2 * c + 1) * area
                i = (row * steps + begin + c) * heads + head
                places = old, new, helds + c * values, asked, job * area
                _unwrite(inputs, dy, ds, grads, i, scratch, places, (width, values))
                if has_resets and resets[row * steps + begin + c]:
                    _clear(ds, job * area, area)


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def lanes(dtype: torch.dtype) -> int:
    """The width of the keys must be a multiple of this."""
    return _LINE_BYTES // dtype.itemsize


def _plan(q: Tensor, values: int, room: int) -> tuple[list[int], Tensor, int]:
    """Sizes, scratch and threads of a launch. Room is rounded up to whole lines, so that threads share none."""
    batch, steps, heads, width = q.shape
    room = -(-room // lanes(q.dtype)) * lanes(q.dtype)
    threads = min(threads_for(4 * q.numel() * values), batch * heads)
    return [batch, steps, heads, width, values, threads, room], q.new_empty(threads * room), threads


def forward(
    inputs: Sequence[Tensor], s0: Tensor, resets: Tensor | None, keeps: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``inputs``: q, k, v, w, removal, and s0 (B,H,V,K), contiguous and of one dtype. y, memory, and marks if
    ``keeps``."""
    q, v = inputs[0], inputs[2]
    batch, steps, heads, width = q.shape
    values = v.shape[-1]
    y, s, marks = torch.empty_like(v), torch.empty_like(s0), None
    if keeps:
        marks = q.new_empty(batch, heads, -(-steps // CHUNK), values, width)
    if s.numel():
        sizes, scratch, threads = _plan(q, values, values * (width + 1))
        _forward_kernel.launch(q.dtype, (*inputs, s0, y, s, marks, resets, scratch), sizes, threads)
    return y, s, marks


def backward(
    dy: Tensor, ds: Tensor, inputs: Sequence[Tensor], marks: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, w, removal and s0 from those of y and of the last memory (B,H,V,K)."""
    q, values = inputs[0], inputs[2].shape[-1]
    ds, grads = ds.clone(), [torch.empty_like(x) for x in inputs]
    if ds.numel():
        sizes, scratch, threads = _plan(q, values, values * (2 * CHUNK * q.shape[-1] + CHUNK + 1))
        tensors = (*inputs, marks, dy, ds, *grads, resets, scratch)
        _backward_kernel.launch(q.dtype, tensors, sizes, threads)
    return *grads, ds
