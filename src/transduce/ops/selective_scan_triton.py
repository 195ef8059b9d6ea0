"""Triton kernels of :func:`transduce.ops.selective_scan`: states live in registers, (B,T,D,N) never exists.

A program owns a block of channels of one row with all their states and walks over time step by step. For the gradient
the states of one span of steps at a time are computed again from the one that was kept before the span. Imports triton;
import it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_parts import cuts, tile


@triton.jit
def _advance(h, x_t, dt_t, b_t, rate):  # noqa: ANN001, ANN202 (triton's own signature)
    return tl.exp(dt_t[:, None] * rate) * h + (dt_t * x_t)[:, None] * b_t[None, :]


@triton.jit
def _forward(  # noqa: ANN001, ANN202
    x, dt, a, b, c, h0, h_last, y, marks, resets, steps, width, order,
    keep: tl.constexpr, restarts: tl.constexpr, span: tl.constexpr, block: tl.constexpr, room: tl.constexpr,
):
    """``marks``: the state before every ``span``-th step, (B,T/span,D,N)."""
    row = tl.program_id(0).to(tl.int64)
    channel, n = tl.program_id(1) * block + tl.arange(0, block), tl.arange(0, room)
    inside, used = channel < width, n < order
    both = inside[:, None] & used[None, :]
    entry = channel[:, None] * order + n[None, :]
    rate = tl.load(a + entry, mask=both, other=0.0)
    h = tl.load(h0 + row * width * order + entry, mask=both, other=0.0)
    spans = (steps + span - 1) // span
    for part in range(0, spans):
        if keep:
            tl.store(marks + (row * spans + part) * width * order + entry, h, mask=both)
        for t in range(part * span, tl.minimum(part * span + span, steps)):
            step = row * steps + t
            x_t = tl.load(x + step * width + channel, mask=inside, other=0.0)
            dt_t = tl.load(dt + step * width + channel, mask=inside, other=0.0)
            b_t = tl.load(b + step * order + n, mask=used, other=0.0)
            c_t = tl.load(c + step * order + n, mask=used, other=0.0)
            if restarts:
                h = tl.where(tl.load(resets + step) != 0, 0.0, h)
            h = _advance(h, x_t, dt_t, b_t, rate)
            tl.store(y + step * width + channel, tl.sum(h * c_t[None, :], 1), mask=inside)
    tl.store(h_last + row * width * order + entry, h, mask=both)


@triton.jit
def _backward(  # noqa: ANN001, ANN202
    x, dt, a, b, c, marks, dy, dh, dx, ddt, da, db, dc, dh0, scratch, resets, steps, width, order,
    restarts: tl.constexpr, span: tl.constexpr, block: tl.constexpr, room: tl.constexpr,
):
    """``scratch``: room for the states of a span, one for each program. db and dc: one for each block of channels,
    (B,blocks,T,N); da: one for each row, (B,D,N)."""
    row, blocks = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    channel, n = tl.program_id(1) * block + tl.arange(0, block), tl.arange(0, room)
    inside, used = channel < width, n < order
    both = inside[:, None] & used[None, :]
    entry = channel[:, None] * order + n[None, :]
    program = row * blocks + tl.program_id(1)
    own = program * span * block * room + tl.arange(0, block)[:, None] * room + n[None, :]
    rate = tl.load(a + entry, mask=both, other=0.0)
    g = tl.load(dh + row * width * order + entry, mask=both, other=0.0)
    d_rate = tl.zeros_like(g)
    spans = (steps + span - 1) // span
    for walked in range(0, spans):
        part = spans - 1 - walked
        last = tl.minimum(part * span + span, steps)
        h = tl.load(marks + (row * spans + part) * width * order + entry, mask=both, other=0.0)
        for t in range(part * span, last):
            step = row * steps + t
            if restarts:
                h = tl.where(tl.load(resets + step) != 0, 0.0, h)
            tl.store(scratch + own + (t - part * span) * block * room, h)
            x_t = tl.load(x + step * width + channel, mask=inside, other=0.0)
            dt_t = tl.load(dt + step * width + channel, mask=inside, other=0.0)
            b_t = tl.load(b + step * order + n, mask=used, other=0.0)
            h = _advance(h, x_t, dt_t, b_t, rate)
        tl.debug_barrier()
        for back in range(0, last - part * span):
            t = last - 1 - back
            step = row * steps + t
            before = tl.load(scratch + own + (t - part * span) * block * room)
            x_t = tl.load(x + step * width + channel, mask=inside, other=0.0)
            dt_t = tl.load(dt + step * width + channel, mask=inside, other=0.0)
            b_t = tl.load(b + step * order + n, mask=used, other=0.0)
            c_t = tl.load(c + step * order + n, mask=used, other=0.0)
            dy_t = tl.load(dy + step * width + channel, mask=inside, other=0.0)
            g += dy_t[:, None] * c_t[None, :]
            faded = g * tl.exp(dt_t[:, None] * rate)
            passed, written = faded * before, tl.sum(g * b_t[None, :], 1)
            d_rate += dt_t[:, None] * passed
            tl.store(ddt + step * width + channel, tl.sum(passed * rate, 1) + x_t * written, mask=inside)
            tl.store(dx + step * width + channel, dt_t * written, mask=inside)
            shared = (program * steps + t) * order + n
            tl.store(db + shared, tl.sum(g * (dt_t * x_t)[:, None], 0), mask=used)
            h = _advance(before, x_t, dt_t, b_t, rate)
            tl.store(dc + shared, tl.sum(h * dy_t[:, None], 0), mask=used)
            g = faded
            if restarts:
                g = tl.where(tl.load(resets + step) != 0, 0.0, g)
        tl.debug_barrier()
    tl.store(da + row * width * order + entry, d_rate, mask=both)
    tl.store(dh0 + row * width * order + entry, g, mask=both)


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""x, dt, a, b, c: contiguous, of one dtype."""


def _plan(inputs: Inputs, resets: Tensor | None) -> tuple[tuple[int, int], list[int], dict[str, int | bool]]:
    """The grid, the sizes, and what is known while compiling."""
    (batch, steps, width), states = inputs[0].shape, inputs[2].shape[1]
    span, block = tile(steps, width)
    fixed = {"restarts": resets is not None, "span": span, "block": block, "room": triton.next_power_of_2(states)}
    return (batch, triton.cdiv(width, block)), [steps, width, states], fixed


def forward(inputs: Inputs, h0: Tensor, resets: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y (B,T,D), h (B,D,N) and, with ``keep``, the states before every span of steps."""
    grid, sizes, fixed = _plan(inputs, resets)
    y, h = torch.empty_like(inputs[0]), torch.empty_like(h0)
    marks = h0.new_empty(len(h0), triton.cdiv(sizes[0], fixed["span"]), *h0.shape[1:]) if keep else None
    flags = cuts(resets, h0)
    _forward[grid](*inputs, h0, h, y, h if marks is None else marks, flags, *sizes, keep=keep, **fixed)
    return y, h, marks


def backward(
    inputs: Inputs, marks: Tensor, resets: Tensor | None, dy: Tensor, dh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c and h0."""
    grid, sizes, fixed = _plan(inputs, resets)
    x, (batch, blocks), (steps, width, states) = inputs[0], grid, sizes
    dx, ddt, da, dh0 = (torch.empty_like(t) for t in (x, x, dh, dh))
    db, dc = (x.new_empty(batch, blocks, steps, states) for _ in range(2))
    scratch = x.new_empty(batch * blocks, fixed["span"], fixed["block"], fixed["room"])
    flags = cuts(resets, x)
    _backward[grid](*inputs, marks, dy, dh, dx, ddt, da, db, dc, dh0, scratch, flags, *sizes, **fixed)
    return dx, ddt, da.sum(0), db.sum(1), dc.sum(1), dh0
