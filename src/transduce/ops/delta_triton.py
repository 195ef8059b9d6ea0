"""Triton kernels of :func:`transduce.ops.delta_general.generalised_delta_rule`, step by step.

A program holds a block of the columns of one head's memory in registers and walks over time: columns (values) never
meet, so that blocks need nothing of each other. With p = S^T e before the step::

    S <- diag(w) S - r p^T + k v^T        y = S^T q

A step reads five vectors and crosses the program twice (p, y): latency, not arithmetic, is what it costs, and what
fills a device are rows, heads and blocks of values. The forward pass stores the memory of every ``CHUNK``-th step. The
backward pass goes through the chunks from the last, lays the memories before each step of a chunk down in a room of its
own, which does not grow with time, and walks back over them; with D = dL/dS after the step::

    D += q dy^T    dq = S' dy    dk = D v    dv = D^T k    dp = -D^T r    dr = -D p    de = S dp
    dw = sum over values of D * S    D <- diag(w) D + e dp^T

Gradients by vectors over the keys are sums over blocks, which are added up in torch, in a fixed order. Imports triton:
import it lazily.
"""

from __future__ import annotations

from typing import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_parts


@triton.jit
def _forward(  # noqa: ANN001, ANN202
    q, k, v, w, removal, s0, y, s, marks, resets, steps, heads, width, values,
    keeps: tl.constexpr, restarts: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c, j = tl.arange(0, wide), tl.program_id(1) * block + tl.arange(0, block)
    in_keys, in_values = c < width, j < values
    place, inside = c[:, None] * values + j[None, :], in_keys[:, None] & in_values[None, :]
    area, pieces = width * values, tl.cdiv(steps, chunk)
    state = tl.load(s0 + row * area + place, mask=inside, other=0.0)
    for piece in range(0, pieces):
        if keeps:
            tl.store(marks + (row * pieces + piece) * area + place, state, mask=inside)
        for t in range(piece * chunk, tl.minimum(steps, (piece + 1) * chunk)):
            at = (row // heads * steps + t) * heads + row % heads
            if restarts:
                state = tl.where(tl.load(resets + row // heads * steps + t) != 0, 0.0, state)
            key = tl.load(k + at * width + c, mask=in_keys, other=0.0)
            fade = tl.load(w + at * width + c, mask=in_keys, other=0.0)
            asks = tl.load(removal + 2 * at * width + c, mask=in_keys, other=0.0)
            takes = tl.load(removal + (2 * at + 1) * width + c, mask=in_keys, other=0.0)
            query = tl.load(q + at * width + c, mask=in_keys, other=0.0)
            value = tl.load(v + at * values + j, mask=in_values, other=0.0)
            held = tl.sum(state * asks[:, None], 0)
            state = state * fade[:, None] - takes[:, None] * held[None, :] + key[:, None] * value[None, :]
            tl.store(y + at * values + j, tl.sum(state * query[:, None], 0), mask=in_values)
    tl.store(s + row * area + place, state, mask=inside)


@triton.jit
def _backward(  # noqa: ANN001, ANN202
    q, k, v, w, removal, marks, dy, ds, dq, dk, dv, dw, dremoval, ds0, room, resets, steps, heads, width, values,
    restarts: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):
    row, across = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, j = tl.arange(0, wide), across * block + tl.arange(0, block)
    in_keys, in_values = c < width, j < values
    place, inside = c[:, None] * values + j[None, :], in_keys[:, None] & in_values[None, :]
    area, pieces = width * values, tl.cdiv(steps, chunk)
    room += row * chunk * area  # each program has its columns of it
    part = (tl.num_programs(0).to(tl.int64) // heads * across) * steps * heads  # where its share of dq, ... begins
    back = tl.load(ds + row * area + place, mask=inside, other=0.0)
    for n in range(0, pieces):
        begin = (pieces - 1 - n) * chunk
        count = tl.minimum(steps - begin, chunk)
        state = tl.load(marks + (row * pieces + pieces - 1 - n) * area + place, mask=inside, other=0.0)
        tl.debug_barrier()  # the room has been read
        for i in range(0, count):
            at = (row // heads * steps + begin + i) * heads + row % heads
            if restarts:
                state = tl.where(tl.load(resets + row // heads * steps + begin + i) != 0, 0.0, state)
            tl.store(room + i * area + place, state, mask=inside)
            key = tl.load(k + at * width + c, mask=in_keys, other=0.0)
            fade = tl.load(w + at * width + c, mask=in_keys, other=0.0)
            asks = tl.load(removal + 2 * at * width + c, mask=in_keys, other=0.0)
            takes = tl.load(removal + (2 * at + 1) * width + c, mask=in_keys, other=0.0)
            value = tl.load(v + at * values + j, mask=in_values, other=0.0)
            held = tl.sum(state * asks[:, None], 0)
            state = state * fade[:, None] - takes[:, None] * held[None, :] + key[:, None] * value[None, :]
        tl.debug_barrier()  # the room has been written
        for m in range(0, count):
            i = count - 1 - m
            at = (row // heads * steps + begin + i) * heads + row % heads
            before = tl.load(room + i * area + place, mask=inside, other=0.0)
            key = tl.load(k + at * width + c, mask=in_keys, other=0.0)
            fade = tl.load(w + at * width + c, mask=in_keys, other=0.0)
            asks = tl.load(removal + 2 * at * width + c, mask=in_keys, other=0.0)
            takes = tl.load(removal + (2 * at + 1) * width + c, mask=in_keys, other=0.0)
            query = tl.load(q + at * width + c, mask=in_keys, other=0.0)
            value = tl.load(v + at * values + j, mask=in_values, other=0.0)
            grad = tl.load(dy + at * values + j, mask=in_values, other=0.0)
            held = tl.sum(before * asks[:, None], 0)
            state = before * fade[:, None] - takes[:, None] * held[None, :] + key[:, None] * value[None, :]
            back += query[:, None] * grad[None, :]
            tl.store(dv + at * values + j, tl.sum(back * key[:, None], 0), mask=in_values)
            of_q, of_k = (part + at) * width + c, (part + at) * 2 * width + c
            tl.store(dq + of_q, tl.sum(state * grad[None, :], 1), mask=in_keys)
            tl.store(dk + of_q, tl.sum(back * value[None, :], 1), mask=in_keys)
            tl.store(dw + of_q, tl.sum(back * before, 1), mask=in_keys)
            on_held = -tl.sum(back * takes[:, None], 0)
            tl.store(dremoval + of_k, tl.sum(before * on_held[None, :], 1), mask=in_keys)
            tl.store(dremoval + of_k + width, -tl.sum(back * held[None, :], 1), mask=in_keys)
            back = back * fade[:, None] + asks[:, None] * on_held[None, :]
            if restarts:
                cut = tl.load(resets + row // heads * steps + begin + i) != 0
                back = tl.where(cut, 0.0, back)
    tl.store(ds0 + row * area + place, back, mask=inside)


def _plan(q: Tensor, values: int) -> tuple[tuple[int, int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and constants."""
    batch, steps, heads, width = q.shape
    wide, block = triton.next_power_of_2(width), min(triton_parts.COLUMNS, triton.next_power_of_2(values))
    flags = {"chunk": triton_parts.CHUNK, "wide": wide, "block": block, "num_warps": triton_parts.warps(wide * block)}
    return (batch * heads, triton.cdiv(values, block)), (steps, heads, width, values), flags


def forward(
    inputs: Sequence[Tensor], s0: Tensor, resets: Tensor | None, keeps: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``inputs``: q, k, v, w, removal, and s0 (B,H,K,V), contiguous and of one dtype. y, memory, and marks if
    ``keeps``."""
    q, v = inputs[0], inputs[2]
    batch, steps, heads, width = q.shape
    grid, sizes, flags = _plan(q, v.shape[3])
    y, s, marks = torch.empty_like(v), torch.empty_like(s0), None
    if keeps:
        marks = q.new_empty(batch, heads, triton.cdiv(steps, flags["chunk"]), width, v.shape[3])
    if s.numel():
        tensors = (*inputs, s0, y, s, s if marks is None else marks, triton_parts.cuts(resets, q))
        _forward[grid](*tensors, *sizes, keeps=keeps, restarts=resets is not None, **flags)
    return y, s, marks


def backward(
    dy: Tensor, ds: Tensor, inputs: Sequence[Tensor], marks: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, w, removal and s0 from those of y and of the last memory."""
    q, k, v, w, removal = inputs
    grid, sizes, flags = _plan(q, v.shape[3])
    dv, ds0 = torch.empty_like(v), torch.empty_like(ds)
    dq, dk, dw, dremoval = (x.new_empty(grid[1], *x.shape) for x in (q, k, w, removal))
    if ds.numel():
        room = q.new_empty(grid[0], flags["chunk"], *ds.shape[2:])
        tensors = (*inputs, marks, dy, ds, dq, dk, dv, dw, dremoval, ds0, room, triton_parts.cuts(resets, q))
        _backward[grid](*tensors, *sizes, restarts=resets is not None, **flags)
    return dq.sum(0), dk.sum(0), dv, dw.sum(0), dremoval.sum(0), ds0
