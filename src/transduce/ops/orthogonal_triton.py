"""Triton kernels of :func:`transduce.ops.orthogonal.orthogonal_update`, step by step.

A program holds all slots of a head of one row in registers and walks over time: every slot meets every other in the
error, and every channel every other in the norms. With u_i = s_i / |s_i| and g_i = r k_i / |s_i|, a step is::

    e = v - sum_i k_i u_i      c_i = u_i . e      s_i' = a s_i + g_i (e - c_i u_i)      y = sum_i q_i u_i'

Four reductions that wait for each other: latency is what a step costs, and rows times heads are what fills a device.
The forward pass stores the slots of every ``CHUNK``-th step; the backward pass goes through the chunks from the last,
lays the slots before each step of a chunk down in a room of its own, which does not grow with time, and walks back over
them. With G_i the gradient by s_i' in full::

    G_i += q_i / |s_i'| (dy - (dy . u_i') u_i')        dg_i = G_i . e - c_i (G_i . u_i)
    de = sum_i g_i (G_i - (G_i . u_i) u_i) = dv        du_i = -g_i (G_i . u_i) e - g_i c_i G_i - k_i de
    ds_i = a G_i + (du_i - (du_i . u_i) u_i) / |s_i| - dg_i g_i u_i / |s_i|

Imports triton; import it lazily.
"""

from __future__ import annotations

from typing import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_parts
from .orthogonal import FLOOR

_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def _norm(s):  # noqa: ANN001, ANN202
    return tl.maximum(tl.sqrt(tl.sum(s * s, 1)), _FLOOR)


@triton.jit
def _write(s, size, write, value, rate, keep, project: tl.constexpr):  # noqa: ANN001, ANN202
    """The slots behind a step, its error, and how much of that lies along each slot."""
    u = s / size[:, None]
    error = value - tl.sum(u * write[:, None], 0)
    along = tl.sum(u * error[None, :], 1)
    push = error[None, :] - along[:, None] * u if project else tl.broadcast_to(error[None, :], u.shape)
    return s * keep + (rate * write / size)[:, None] * push, error, along


@triton.jit
def _forward(  # noqa: ANN001, ANN202
    keys, v, gates, fresh, s0, y, last, marks, resets, steps, heads, slots, width,
    keeps: tl.constexpr, restarts: tl.constexpr, project: tl.constexpr, chunk: tl.constexpr, tall: tl.constexpr,
    wide: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    m, c = tl.arange(0, tall), tl.arange(0, wide)
    place, inside = m[:, None] * width + c[None, :], (m < slots)[:, None] & (c < width)[None, :]
    area, pieces = slots * width, tl.cdiv(steps, chunk)
    s = tl.load(s0 + row * area + place, mask=inside, other=0.0)
    start = tl.load(fresh + row % heads * area + place, mask=inside, other=0.0)
    size, start_size = _norm(s), _norm(start)
    for piece in range(0, pieces):
        if keeps:
            tl.store(marks + (row * pieces + piece) * area + place, s, mask=inside)
        for t in range(piece * chunk, tl.minimum(steps, (piece + 1) * chunk)):
            at = (row // heads * steps + t) * heads + row % heads
            if restarts:
                cut = tl.load(resets + row // heads * steps + t) != 0
                s, size = tl.where(cut, start, s), tl.where(cut, start_size, size)
            read = tl.load(keys + 2 * at * slots + m, mask=m < slots, other=0.0)
            write = tl.load(keys + (2 * at + 1) * slots + m, mask=m < slots, other=0.0)
            value = tl.load(v + at * width + c, mask=c < width, other=0.0)
            rate, keep = tl.load(gates + 2 * at), tl.load(gates + 2 * at + 1)
            s, _, _ = _write(s, size, write, value, rate, keep, project)
            size = _norm(s)
            tl.store(y + at * width + c, tl.sum(s * (read / size)[:, None], 0), mask=c < width)
    tl.store(last + row * area + place, s, mask=inside)


@triton.jit
def _backward(  # noqa: ANN001, ANN202
    keys, v, gates, fresh, marks, dy, ds, dkeys, dv, dgates, dfresh, ds0, room, resets, steps, heads, slots, width,
    restarts: tl.constexpr, project: tl.constexpr, chunk: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    m, c = tl.arange(0, tall), tl.arange(0, wide)
    place, inside = m[:, None] * width + c[None, :], (m < slots)[:, None] & (c < width)[None, :]
    area, pieces = slots * width, tl.cdiv(steps, chunk)
    room += row * chunk * area
    start = tl.load(fresh + row % heads * area + place, mask=inside, other=0.0)
    back = tl.load(ds + row * area + place, mask=inside, other=0.0)
    on_start = tl.zeros_like(back)
    for n in range(0, pieces):
        begin = (pieces - 1 - n) * chunk
        count = tl.minimum(steps - begin, chunk)
        s = tl.load(marks + (row * pieces + pieces - 1 - n) * area + place, mask=inside, other=0.0)
        tl.debug_barrier()  # the room has been read
        for i in range(0, count):
            at = (row // heads * steps + begin + i) * heads + row % heads
            if restarts:
                s = tl.where(tl.load(resets + row // heads * steps + begin + i) != 0, start, s)
            tl.store(room + i * area + place, s, mask=inside)
            write = tl.load(keys + (2 * at + 1) * slots + m, mask=m < slots, other=0.0)
            value = tl.load(v + at * width + c, mask=c < width, other=0.0)
            rate, keep = tl.load(gates + 2 * at), tl.load(gates + 2 * at + 1)
            s, _, _ = _write(s, _norm(s), write, value, rate, keep, project)
        tl.debug_barrier()  # the room has been written
        for step in range(0, count):
            i = count - 1 - step
            at = (row // heads * steps + begin + i) * heads + row % heads
            s = tl.load(room + i * area + place, mask=inside, other=0.0)
            read = tl.load(keys + 2 * at * slots + m, mask=m < slots, other=0.0)
            write = tl.load(keys + (2 * at + 1) * slots + m, mask=m < slots, other=0.0)
            value = tl.load(v + at * width + c, mask=c < width, other=0.0)
            rate, keep = tl.load(gates + 2 * at), tl.load(gates + 2 * at + 1)
            grad = tl.load(dy + at * width + c, mask=c < width, other=0.0)
            size = _norm(s)
            u, (new, error, along) = s / size[:, None], _write(s, size, write, value, rate, keep, project)
            size_new = _norm(new)
            # Through the read.
            new /= size_new[:, None]
            seen = tl.sum(new * grad[None, :], 1)
            tl.store(dkeys + 2 * at * slots + m, seen, mask=m < slots)
            turned = tl.where(size_new <= _FLOOR, 0.0, seen)
            back += (read / size_new)[:, None] * (grad[None, :] - turned[:, None] * new)
            # Through the write: what the slots let pass, how far they were pushed, and the error.
            gain, on_u, on_gain = rate * write / size, tl.sum(back * u, 1), tl.sum(back * error[None, :], 1)
            tl.store(dgates + 2 * at + 1, tl.sum(on_u * size, 0))
            if project:
                on_gain -= along * on_u
                on_error = tl.sum(gain[:, None] * (back - on_u[:, None] * u), 0)
            else:
                on_error = tl.sum(gain[:, None] * back, 0)
            tl.store(dgates + 2 * at, tl.sum(on_gain * write / size, 0))
            tl.store(dv + at * width + c, on_error, mask=c < width)
            foreseen = tl.sum(u * on_error[None, :], 1)
            tl.store(dkeys + (2 * at + 1) * slots + m, on_gain * rate / size - foreseen, mask=m < slots)
            by_u, along_u = -write[:, None] * on_error[None, :], -write * foreseen
            if project:
                by_u -= gain[:, None] * (on_u[:, None] * error[None, :] + along[:, None] * back)
                along_u -= 2.0 * gain * along * on_u
            shrinks = tl.where(size <= _FLOOR, 0.0, along_u + on_gain * gain)
            back = back * keep + (by_u - shrinks[:, None] * u) / size[:, None]
            if restarts:
                cut = tl.load(resets + row // heads * steps + begin + i) != 0
                on_start += tl.where(cut, back, 0.0)
                back = tl.where(cut, 0.0, back)
    tl.store(dfresh + row * area + place, on_start, mask=inside)
    tl.store(ds0 + row * area + place, back, mask=inside)


def _plan(v: Tensor, slots: int) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and constants."""
    batch, steps, heads, width = v.shape
    tall, wide = triton.next_power_of_2(slots), triton.next_power_of_2(width)
    flags = {"chunk": triton_parts.CHUNK, "tall": tall, "wide": wide, "num_warps": triton_parts.warps(tall * wide)}
    return (batch * heads,), (steps, heads, slots, width), flags


def forward(
    inputs: Sequence[Tensor], resets: Tensor | None, project: bool, keeps: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``inputs``: keys, v, (rate, decay), fresh, s0, contiguous and of one dtype. y, slots, and marks if ``keeps``."""
    keys, v, *_, s0 = inputs
    batch, steps, heads, _ = v.shape
    grid, sizes, flags = _plan(v, keys.shape[-1])
    y, s, marks = torch.empty_like(v), torch.empty_like(s0), None
    if keeps:
        marks = v.new_empty(batch, heads, triton.cdiv(steps, flags["chunk"]), *s0.shape[2:])
    if s.numel():
        tensors = (*inputs, y, s, s if marks is None else marks, triton_parts.cuts(resets, v))
        _forward[grid](*tensors, *sizes, keeps=keeps, restarts=resets is not None, project=project, **flags)
    return y, s, marks


def backward(
    grads: tuple[Tensor, Tensor], saved: Sequence[Tensor], resets: Tensor | None, project: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, v, (rate, decay), fresh and s0 from those of y and of the last slots."""
    dy, ds = grads
    keys, v, gates, _, _ = saved
    grid, sizes, flags = _plan(v, keys.shape[-1])
    dkeys, dv, dgates = (torch.empty_like(x) for x in (keys, v, gates))
    dfresh, ds0 = torch.zeros_like(ds), torch.zeros_like(ds)
    if ds.numel():
        room = v.new_empty(grid[0], flags["chunk"], *ds.shape[2:])
        tensors = (*saved, dy, ds, dkeys, dv, dgates, dfresh, ds0, room, triton_parts.cuts(resets, v))
        _backward[grid](*tensors, *sizes, restarts=resets is not None, project=project, **flags)
    return dkeys, dv, dgates, dfresh.sum(0), ds0
