"""Kernels of :func:`transduce.ops.orthogonal.orthogonal_update`. A thread owns whole heads of rows; the slots of a head
lie in the first-level cache, vectors over the width D, which the caller has padded to whole ones.

The forward pass stores the slots of every ``CHUNK``-th step. The backward pass goes through the chunks from the last,
computes the slots of a chunk again and walks back over them. With G_i the gradient by the new s_i, u = s_i / |s_i|,
c_i = u_i . e and g_i = r k_i / |s_i|::

    G_i  = (gradient from later steps) + q_i / |s'_i| (dy - (dy . u'_i) u'_i)
    de   = sum_i g_i (G_i - (G_i . u_i) u_i) = dv                dk_i = (G_i . e - c_i (G_i . u_i)) r / |s_i| - de . u_i
    ds_i = a G_i + (terms along e, de, G_i and s_i that come from u_i and |s_i|)

Imports numba; import it lazily.
"""

from __future__ import annotations

import math
from typing import Sequence

import numba
import torch
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .orthogonal import FLOOR
from .vectors import lanes_of, load, spread, store, total

CHUNK = 16
"""Steps between two stored states, and steps computed again at a time."""
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
def _root(square):  # noqa: ANN001, ANN202
    norm = math.sqrt(square)
    return norm if norm > FLOOR else FLOOR


@_inline
def _norms(p, s, out, n, slots, width):  # noqa: ANN001, ANN202
    for m in range(slots):
        out[n + m] = _root(_dot(p, s + m * width, p, s + m * width, width))


@_inline
def _advance(inputs, i, old, scratch, new, sizes):  # noqa: ANN001, ANN202
    """Step i: slots and norms ``old`` -> ``new`` (may be the same place); keeps e and every c = u . e in scratch."""
    keys, v, gates = inputs
    source, s, n = old
    s_new, n_new, error, along = new
    slots, width, project = sizes
    rate, keep, k = gates[2 * i], gates[2 * i + 1], (2 * i + 1) * slots
    lanes = lanes_of(v)
    for b in range(0, width, lanes):
        e = load(v, i * width + b)
        for m in range(slots):
            e = e - load(source, s + m * width + b) * spread(e, keys[k + m] / scratch[n + m])
        store(scratch, error + b, e)
    for m in range(slots):
        size = scratch[n + m]
        c = _dot(source, s + m * width, scratch, error, width) / size
        scratch[along + m] = c
        g = rate * keys[k + m] / size
        stays = keep - g * c / size if project else keep
        norm = spread(load(v, i * width), 0)
        for b in range(0, width, lanes):
            x = load(source, s + m * width + b) * spread(norm, stays) + load(scratch, error + b) * spread(norm, g)
            store(scratch, s_new + m * width + b, x)
            norm = norm + x * x
        scratch[n_new + m] = _root(total(norm))


@_inline
def _copy(p, i, q, j, count):  # noqa: ANN001, ANN202
    for b in range(count):
        q[j + b] = p[i + b]


def _forward(data) -> None:  # noqa: ANN001
    """tensors keys, v, gates, fresh, s0, y, s (B,H,M,D), marks (B,H,chunks,M,D) or None, resets or None, scratch;
    sizes batch, steps, heads, slots, width, project, threads, room."""
    inputs = data[0], data[1], data[2]
    keys, fresh, s0, y, s, marks, resets, scratch = (
        data[0], data[3], data[4], data[5], data[6], data[7], as_bytes(data[8]), data[9],
    )  # fmt: skip
    keeps, has_resets = as_size(data[7]) != 0, as_size(data[8]) != 0
    batch, steps, heads, slots = as_size(data[10]), as_size(data[11]), as_size(data[12]), as_size(data[13])
    width, project, threads, room = as_size(data[14]), as_size(data[15]), as_size(data[16]), as_size(data[17])
    area, chunks, lanes = slots * width, (steps + CHUNK - 1) // CHUNK, lanes_of(keys)
    me = thread_number()
    state = me * room
    norms = state + area
    error = norms + slots
    along = error + width
    jobs = batch * heads
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head = job // heads, job % heads
        _copy(s0, job * area, scratch, state, area)
        _norms(scratch, state, scratch, norms, slots, width)
        for t in range(steps):
            if keeps and t % CHUNK == 0:
                _copy(scratch, state, marks, (job * chunks + t // CHUNK) * area, area)
            if has_resets and resets[row * steps + t]:
                _copy(fresh, head * area, scratch, state, area)
                _norms(scratch, state, scratch, norms, slots, width)
            i = (row * steps + t) * heads + head
            _advance(
                inputs, i, (scratch, state, norms), scratch, (state, norms, error, along), (slots, width, project)
            )
            for b in range(0, width, lanes):
                out = spread(load(y, i * width + b), 0)
                for m in range(slots):
                    q = keys[2 * i * slots + m] / scratch[norms + m]
                    out = out + load(scratch, state + m * width + b) * spread(out, q)
                store(y, i * width + b, out)
        _copy(scratch, state, s, job * area, area)


@_inline
def _through_read(inputs, grads, i, old, scratch, new, sums, sizes):  # noqa: ANN001, ANN202
    """G in the place of ds; gradients of the read key, the decay and the rate, and that of the write key through g.

    ``sums``: where to leave, for each slot, G . u (zero without the projection) and dL/dg."""
    keys, _, gates = inputs
    dy, ds, dkeys, _, dgates = grads
    source, s, n = old
    s_new, n_new, error, along = new
    place, turn, of_g = sums
    slots, width, project = sizes
    lanes = lanes_of(dy)
    rate = gates[2 * i]
    d_rate = rate - rate
    d_keep = d_rate
    for m in range(slots):
        size, size_new = scratch[n + m], scratch[n_new + m]
        read = _dot(dy, i * width, scratch, s_new + m * width, width) / size_new
        dkeys[2 * i * slots + m] = read
        q = keys[2 * i * slots + m] / size_new
        back = -q * read / size_new
        if size_new <= FLOOR:
            back = 0
        on_s = spread(load(dy, i * width), 0)
        on_e = on_s
        for b in range(0, width, lanes):
            at = place + m * width + b
            g = load(ds, at) + load(dy, i * width + b) * spread(on_s, q)
            g = g + load(scratch, s_new + m * width + b) * spread(on_s, back)
            store(ds, at, g)
            on_s = on_s + g * load(source, s + m * width + b)
            on_e = on_e + g * load(scratch, error + b)
        of_s, of_gain = total(on_s), total(on_e)
        d_keep += of_s
        if project:
            scratch[turn + m] = of_s / size
            of_gain -= scratch[along + m] * of_s / size
        else:
            scratch[turn + m] = of_s - of_s
        scratch[of_g + m] = of_gain
        d_rate += of_gain * keys[(2 * i + 1) * slots + m] / size
        dkeys[(2 * i + 1) * slots + m] = of_gain * rate / size
    dgates[2 * i] = d_rate
    dgates[2 * i + 1] = d_keep


@_inline
def _through_write(inputs, grads, i, old, scratch, new, sums, sizes):  # noqa: ANN001, ANN202
    """From G to the gradient by the slots before the step, in the same place; dv, and dkeys through e."""
    keys, _, gates = inputs
    _, ds, dkeys, dv, _ = grads
    source, s, n = old
    _, _, error, along = new
    place, turn, of_g = sums
    slots, width, project = sizes
    lanes = lanes_of(dv)
    rate, keep, k = gates[2 * i], gates[2 * i + 1], (2 * i + 1) * slots
    for b in range(0, width, lanes):
        de = spread(load(ds, place), 0)
        for m in range(slots):
            g = rate * keys[k + m] / scratch[n + m]
            de = de + load(ds, place + m * width + b) * spread(de, g)
            de = de - load(source, s + m * width + b) * spread(de, g * scratch[turn + m] / scratch[n + m])
        store(dv, i * width + b, de)
    for m in range(slots):
        size, key, gu = scratch[n + m], keys[k + m], scratch[turn + m]
        c = scratch[along + m] if project else gu
        g = rate * key / size
        x = _dot(source, s + m * width, dv, i * width, width) / size
        dkeys[k + m] -= x
        along_u = -2 * g * c * gu - key * x
        stays = keep - g * c / size
        on_e, on_de = -g * gu / size, -key / size
        on_s = (-scratch[of_g + m] * g - along_u) / (size * size)
        if size <= FLOOR:
            on_s = 0
        like = load(dv, i * width)
        for b in range(0, width, lanes):
            at = place + m * width + b
            found = load(ds, at) * spread(like, stays) + load(scratch, error + b) * spread(like, on_e)
            found = found + load(dv, i * width + b) * spread(like, on_de)
            store(ds, at, found + load(source, s + m * width + b) * spread(like, on_s))


def _backward(data) -> None:  # noqa: ANN001
    """tensors keys, v, gates, fresh, marks, dy, ds (in: by the last slots, out: by the first), dkeys, dv, dgates,
    dfresh (B,H,M,D), resets or None, scratch; sizes as for the forward kernel."""
    inputs = data[0], data[1], data[2]
    fresh, marks, ds, dfresh = data[3], data[4], data[6], data[10]
    grads = data[5], ds, data[7], data[8], data[9]
    resets, has_resets, scratch = as_bytes(data[11]), as_size(data[11]) != 0, data[12]
    batch, steps, heads, slots = as_size(data[13]), as_size(data[14]), as_size(data[15]), as_size(data[16])
    width, project, threads, room = as_size(data[17]), as_size(data[18]), as_size(data[19]), as_size(data[20])
    area, chunks, sizes = slots * width, (steps + CHUNK - 1) // CHUNK, (slots, width, project)
    me = thread_number()
    states = me * room
    errors = states + (CHUNK + 1) * area
    norms = errors + CHUNK * width
    alongs = norms + (CHUNK + 1) * slots
    fresh_norms = alongs + CHUNK * slots
    sums = fresh_norms + slots
    jobs = batch * heads
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, head, place = job // heads, job % heads, job * area
        _norms(fresh, head * area, scratch, fresh_norms, slots, width)
        for chunk in range(chunks - 1, -1, -1):
            begin, end = chunk * CHUNK, min(steps, (chunk + 1) * CHUNK)
            _copy(marks, (job * chunks + chunk) * area, scratch, states, area)
            _norms(scratch, states, scratch, norms, slots, width)
            for j in range(end - begin):
                old = scratch, states + j * area, norms + j * slots
                if has_resets and resets[row * steps + begin + j]:
                    old = fresh, head * area, fresh_norms
                new = states + (j + 1) * area, norms + (j + 1) * slots, errors + j * width, alongs + j * slots
                _advance(inputs, (row * steps + begin + j) * heads + head, old, scratch, new, sizes)
            for j in range(end - begin - 1, -1, -1):
                restart = has_resets and resets[row * steps + begin + j]
                old = scratch, states + j * area, norms + j * slots
                if restart:
                    old = fresh, head * area, fresh_norms
                new = states + (j + 1) * area, norms + (j + 1) * slots, errors + j * width, alongs + j * slots
                i, where = (row * steps + begin + j) * heads + head, (place, sums, sums + slots)
                _through_read(inputs, grads, i, old, scratch, new, where, sizes)
                _through_write(inputs, grads, i, old, scratch, new, where, sizes)
                if restart:
                    for b in range(area):
                        dfresh[place + b] += ds[place + b]
                        ds[place + b] = 0


_forward_kernel, _backward_kernel = Kernel(_forward), Kernel(_backward)


def lanes(dtype: torch.dtype) -> int:
    """The width must be a multiple of this."""
    return _LINE_BYTES // dtype.itemsize


def _plan(v: Tensor, slots: int, project: bool, room: int) -> tuple[list[int], Tensor, int]:
    """Sizes, scratch and threads of a launch. Room is rounded up to whole lines, so that threads share none."""
    batch, steps, heads, width = v.shape
    room = -(-room // lanes(v.dtype)) * lanes(v.dtype)
    threads = min(threads_for(4 * v.numel() * slots), batch * heads)
    sizes = [batch, steps, heads, slots, width, int(project), threads, room]
    return sizes, v.new_empty(threads * room), threads


def forward(
    inputs: Sequence[Tensor], resets: Tensor | None, project: bool, keeps: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``inputs``: keys, v, (rate, decay), fresh, s0, contiguous and of one dtype. y, slots, and marks if ``keeps``."""
    keys, v, gates, fresh, s0 = inputs
    batch, steps, heads, width = v.shape
    slots = keys.shape[-1]
    y, s, marks = torch.empty_like(v), torch.empty_like(s0), None
    if keeps:
        marks = v.new_empty(batch, heads, -(-steps // CHUNK), slots, width)
    if s.numel():
        sizes, scratch, threads = _plan(v, slots, project, slots * (width + 2) + width)
        tensors = (keys, v, gates, fresh, s0, y, s, marks, resets, scratch)
        _forward_kernel.launch(v.dtype, tensors, sizes, threads)
    return y, s, marks


def backward(
    grads: tuple[Tensor, Tensor], saved: Sequence[Tensor], resets: Tensor | None, project: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, v, (rate, decay), fresh and s0 from those of y and of the last slots."""
    dy, ds = grads[0], grads[1].clone()
    keys, v, gates, fresh, marks = saved
    slots, width = keys.shape[-1], v.shape[-1]
    dkeys, dv, dgates = (torch.empty_like(x) for x in (keys, v, gates))
    dfresh = torch.zeros_like(ds)
    if ds.numel():
        room = (CHUNK + 1) * slots * (width + 1) + CHUNK * (width + slots) + 3 * slots
        sizes, scratch, threads = _plan(v, slots, project, room)
        tensors = (keys, v, gates, fresh, marks, dy, ds, dkeys, dv, dgates, dfresh, resets, scratch)
        _backward_kernel.launch(v.dtype, tensors, sizes, threads)
    return dkeys, dv, dgates, dfresh.sum(0), ds
