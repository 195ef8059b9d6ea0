"""Triton kernels of the loops in :mod:`transduce.ops.rnn_loop`: the same buffers, all steps in one launch.

A program holds the recurrent weights of one head, and the states of 16 rows, and walks over time; it needs nothing of
other programs, since heads do not meet. Buffers are time-major, (T,H*B,G*K), the rows of a head together. The
weights stay where a step can reach them, which bounds the width of a head. Imports triton: import it lazily.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import triton_parts
from .triton_parts import PRODUCTS


@triton.jit
def _tanh(x):  # noqa: ANN001, ANN202
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _times(x, weight):  # noqa: ANN001, ANN202
    return tl.dot(x, weight, input_precision=PRODUCTS, out_dtype=x.dtype)


@triton.jit
def _of_gate(  # noqa: ANN001, ANN202
    weight, gate: tl.constexpr, head, heads, width, turned: tl.constexpr, wide: tl.constexpr
):
    """The weights (K,K) of one gate of one head, out of (G*D,K)."""
    c = tl.arange(0, wide)
    inside = (c < width)[:, None] & (c < width)[None, :]
    place = c[None, :] * width + c[:, None] if turned else c[:, None] * width + c[None, :]
    return tl.load(weight + (gate * heads + head) * width * width + place, mask=inside, other=0.0)


@triton.jit
def _gru(  # noqa: ANN001, ANN202
    gates, inner, states, weight, resets, steps, heads, rows, width,
    restarts: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """gates: pre-activations in, r, z, n out; inner: biases in, U_n h + bias out; states[0] in, the others out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_r = _of_gate(weight, 0, head, heads, width, True, wide)
    u_z = _of_gate(weight, 1, head, heads, width, True, wide)
    u_n = _of_gate(weight, 2, head, heads, width, True, wide)
    h = tl.load(states + row[:, None] * width + c[None, :], mask=inside, other=0.0)
    for t in range(0, steps):
        at = row + t * (heads * rows)
        if restarts:
            h = tl.where((tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None], 0.0, h)
        of_gates, of_state = at[:, None] * 3 * width + c[None, :], at[:, None] * width + c[None, :]
        r = tl.sigmoid(tl.load(gates + of_gates, mask=inside, other=0.0) + _times(h, u_r))
        z = tl.sigmoid(tl.load(gates + of_gates + width, mask=inside, other=0.0) + _times(h, u_z))
        m = tl.load(inner + of_state, mask=inside, other=0.0) + _times(h, u_n)
        n = _tanh(tl.load(gates + of_gates + 2 * width, mask=inside, other=0.0) + r * m)
        h -= (h - n) * (1.0 - z)  # exactly h where z is 1
        tl.store(gates + of_gates, r, mask=inside)
        tl.store(gates + of_gates + width, z, mask=inside)
        tl.store(gates + of_gates + 2 * width, n, mask=inside)
        tl.store(inner + of_state, m, mask=inside)
        tl.store(states + (at + heads * rows)[:, None] * width + c[None, :], h, mask=inside)


@triton.jit
def _gru_back(  # noqa: ANN001, ANN202
    dh, factor, gates, weight, first, resets, steps, heads, rows, width,
    restarts: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """dh: gradients by the outputs in, by the states in full out; factor: gradients by U h relative to those in, in
    full out; first: by the state before the first step, out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_r = _of_gate(weight, 0, head, heads, width, False, wide)
    u_z = _of_gate(weight, 1, head, heads, width, False, wide)
    u_n = _of_gate(weight, 2, head, heads, width, False, wide)
    back = tl.zeros([block, wide], u_r.dtype)
    for s in range(0, steps):
        at = row + (steps - 1 - s) * (heads * rows)
        of_gates, of_state = at[:, None] * 3 * width + c[None, :], at[:, None] * width + c[None, :]
        back += tl.load(dh + of_state, mask=inside, other=0.0)
        tl.store(dh + of_state, back, mask=inside)
        d_r = back * tl.load(factor + of_gates, mask=inside, other=0.0)
        d_z = back * tl.load(factor + of_gates + width, mask=inside, other=0.0)
        d_n = back * tl.load(factor + of_gates + 2 * width, mask=inside, other=0.0)
        tl.store(factor + of_gates, d_r, mask=inside)
        tl.store(factor + of_gates + width, d_z, mask=inside)
        tl.store(factor + of_gates + 2 * width, d_n, mask=inside)
        kept = back * tl.load(gates + of_gates + width, mask=inside, other=0.0)
        back = kept + _times(d_r, u_r) + _times(d_z, u_z) + _times(d_n, u_n)
        if restarts:
            back = tl.where((tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None], 0.0, back)
    tl.store(first + row[:, None] * width + c[None, :], back, mask=inside)


@triton.jit
def _lstm(  # noqa: ANN001, ANN202
    gates, hs, cs, squashed, weight, resets, held, steps, heads, rows, width,
    restarts: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """gates: pre-activations in, i, f, g, o out; hs[0] and cs[0] in, the others out; squashed: tanh(c) out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_i = _of_gate(weight, 0, head, heads, width, True, wide)
    u_f = _of_gate(weight, 1, head, heads, width, True, wide)
    u_g = _of_gate(weight, 2, head, heads, width, True, wide)
    u_o = _of_gate(weight, 3, head, heads, width, True, wide)
    h = tl.load(hs + row[:, None] * width + c[None, :], mask=inside, other=0.0)
    memory = tl.load(cs + row[:, None] * width + c[None, :], mask=inside, other=0.0)
    for t in range(0, steps):
        at = row + t * (heads * rows)
        if restarts:
            cut = (tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None]
            h, memory = tl.where(cut, 0.0, h), tl.where(cut, 0.0, memory)
        of_gates, of_state = at[:, None] * 4 * width + c[None, :], at[:, None] * width + c[None, :]
        of_next = (at + heads * rows)[:, None] * width + c[None, :]
        i = tl.sigmoid(tl.load(gates + of_gates, mask=inside, other=0.0) + _times(h, u_i))
        f = tl.sigmoid(tl.load(gates + of_gates + width, mask=inside, other=0.0) + _times(h, u_f))
        g = _tanh(tl.load(gates + of_gates + 2 * width, mask=inside, other=0.0) + _times(h, u_g))
        o = tl.sigmoid(tl.load(gates + of_gates + 3 * width, mask=inside, other=0.0) + _times(h, u_o))
        memory = f * memory + i * g
        small = _tanh(memory)
        if masked:
            stays = (tl.load(held + at, mask=b < rows, other=0) != 0)[:, None]
            h = tl.where(stays, h, o * small)
        else:
            h = o * small
        tl.store(gates + of_gates, i, mask=inside)
        tl.store(gates + of_gates + width, f, mask=inside)
        tl.store(gates + of_gates + 2 * width, g, mask=inside)
        tl.store(gates + of_gates + 3 * width, o, mask=inside)
        tl.store(squashed + of_state, small, mask=inside)
        tl.store(hs + of_next, h, mask=inside)
        tl.store(cs + of_next, memory, mask=inside)


@triton.jit
def _lstm_back(  # noqa: ANN001, ANN202
    dh, dc, into_c, factor, gates, weight, first_h, first_c, resets, held, steps, heads, rows, width,
    restarts: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """dh, dc: gradients by the outputs; factor: gradients by the pre-activations, relative to those by c (i, f, g) and
    h (o) in, in full out; first_h and first_c: by the states before the first step, out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_i = _of_gate(weight, 0, head, heads, width, False, wide)
    u_f = _of_gate(weight, 1, head, heads, width, False, wide)
    u_g = _of_gate(weight, 2, head, heads, width, False, wide)
    u_o = _of_gate(weight, 3, head, heads, width, False, wide)
    by_h, by_c = tl.zeros([block, wide], u_i.dtype), tl.zeros([block, wide], u_i.dtype)
    for s in range(0, steps):
        at = row + (steps - 1 - s) * (heads * rows)
        of_gates, of_state = at[:, None] * 4 * width + c[None, :], at[:, None] * width + c[None, :]
        by_h += tl.load(dh + of_state, mask=inside, other=0.0)
        by_c += tl.load(dc + of_state, mask=inside, other=0.0)
        by_c += by_h * tl.load(into_c + of_state, mask=inside, other=0.0)
        d_i = by_c * tl.load(factor + of_gates, mask=inside, other=0.0)
        d_f = by_c * tl.load(factor + of_gates + width, mask=inside, other=0.0)
        d_g = by_c * tl.load(factor + of_gates + 2 * width, mask=inside, other=0.0)
        d_o = by_h * tl.load(factor + of_gates + 3 * width, mask=inside, other=0.0)
        tl.store(factor + of_gates, d_i, mask=inside)
        tl.store(factor + of_gates + width, d_f, mask=inside)
        tl.store(factor + of_gates + 2 * width, d_g, mask=inside)
        tl.store(factor + of_gates + 3 * width, d_o, mask=inside)
        by_c *= tl.load(gates + of_gates + width, mask=inside, other=0.0)
        found = _times(d_i, u_i) + _times(d_f, u_f) + _times(d_g, u_g) + _times(d_o, u_o)
        if masked:
            stays = (tl.load(held + at, mask=b < rows, other=0) != 0)[:, None]
            by_h = tl.where(stays, by_h, 0.0) + found
        else:
            by_h = found
        if restarts:
            cut = (tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None]
            by_h, by_c = tl.where(cut, 0.0, by_h), tl.where(cut, 0.0, by_c)
    tl.store(first_h + row[:, None] * width + c[None, :], by_h, mask=inside)
    tl.store(first_c + row[:, None] * width + c[None, :], by_c, mask=inside)


def _plan(buffer: Tensor, heads: int) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants. ``buffer``: (T,H*B,K)."""
    steps, rows, width = buffer.shape
    rows //= heads
    wide = triton_parts.power(width)
    flags = {"block": triton_parts.ROWS, "wide": wide, "num_warps": 4 if wide < 64 else 8}
    return (triton.cdiv(rows, triton_parts.ROWS), heads), (steps, heads, rows, width), flags


def gru(states: Tensor, gates: Tensor, inner: Tensor, weight: Tensor, restarts: Tensor | None, heads: int) -> None:
    """All steps forward, see :func:`_gru`; restarts (T,H*B,1) or None."""
    grid, sizes, flags = _plan(inner, heads)
    if inner.numel():
        resets = triton_parts.cuts(restarts, inner)
        _gru[grid](gates, inner, states, weight, resets, *sizes, restarts=restarts is not None, **flags)


def gru_back(dh: Tensor, factor: Tensor, gates: Tensor, weight: Tensor, restarts: Tensor | None, heads: int) -> Tensor:
    """All steps backward, see :func:`_gru_back`; the gradient by the first state."""
    grid, sizes, flags = _plan(dh, heads)
    first = dh.new_zeros(dh.shape[1:])
    if dh.numel():
        resets = triton_parts.cuts(restarts, dh)
        _gru_back[grid](dh, factor, gates, weight, first, resets, *sizes, restarts=restarts is not None, **flags)
    return first


def lstm(
    states: tuple[Tensor, Tensor],
    gates: Tensor,
    squashed: Tensor,
    weight: Tensor,
    flags: tuple[Tensor | None, Tensor | None],
    heads: int,
) -> None:
    """All steps forward, see :func:`_lstm`; flags: restarts and held, (T,H*B,1) or None."""
    grid, sizes, constants = _plan(squashed, heads)
    if squashed.numel():
        marks = [triton_parts.cuts(x, squashed) for x in flags]
        constants |= {"restarts": flags[0] is not None, "masked": flags[1] is not None}
        _lstm[grid](gates, *states, squashed, weight, *marks, *sizes, **constants)


def lstm_back(
    grads: tuple[Tensor, Tensor, Tensor],
    factor: Tensor,
    gates: Tensor,
    weight: Tensor,
    flags: tuple[Tensor | None, Tensor | None],
    heads: int,
) -> tuple[Tensor, Tensor]:
    """All steps backward, see :func:`_lstm_back`; grads: dh, dc, into_c. The gradients by the first states."""
    grid, sizes, constants = _plan(grads[0], heads)
    first_h, first_c = (gates.new_zeros(grads[0].shape[1:]) for _ in range(2))
    if grads[0].numel():
        marks = [triton_parts.cuts(x, gates) for x in flags]
        constants |= {"restarts": flags[0] is not None, "masked": flags[1] is not None}
        _lstm_back[grid](*grads, factor, gates, weight, first_h, first_c, *marks, *sizes, **constants)
    return first_h, first_c
