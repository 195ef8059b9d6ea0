"""Triton kernels of S_t = diag(a_t) S_(t-1) + k_t v_t^T, y_t = S_t^T q_t, in chunks of steps.

With c_i = a_1 ... a_i inside a chunk, o_j = a_(j+1) ... a_C to its end, S the state before it and P_ij = a_(j+1) ...
a_i for j <= i, else zero, each of them a vector over the channels of the keys::

    A_ij = sum over channels of q_i k_j P_ij        y = (q * c) S + A v        S' = diag(c_C) S + (k * o)^T v

Decays are multiplied and never divided by, so that none is too strong, and a decay of zero is a cut. Only S' has to be
computed chunk after chunk (:func:`_states`, a program for a block of the state); the rest is a program for each chunk.
Backward, D the gradient by S' and dA = dy v^T under the diagonal::

    D_before = diag(c_C) D + (q * c)^T dy           dv = A^T dy + (k * o) D
    dq_i = c_i * (S dy_i) + sum_j dA_ij k_j P_ij    dk_j = o_j * (D v_j) + sum_i dA_ij q_i P_ij
    dlog(a_t) = sum over s >= t of (q_s dq_s - k_s dk_s) + sum over values of D * S'

The last line counts what reaches step t from before: all that is read behind it and kept at the end, but for what was
written since. Memory: a state for every chunk, forward, and its gradient, backward. Where every channel has its own
decay, the P_ij take a loop over the steps of a chunk. Imports triton: import it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_parts
from .triton_parts import PRODUCTS


@triton.jit
def _states(  # noqa: ANN001, ANN202
    x, v, a, start, marks, steps, heads, width, values,
    back: tl.constexpr, single: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):
    """The states before each chunk and behind the last, from ``start``, of what ``x`` = k writes. ``back``: from the
    gradient by the last state and x = q, v = dy, the gradients by the states behind each chunk and before the first."""
    row, c, j = tl.program_id(0).to(tl.int64), tl.program_id(1) * wide, tl.program_id(2) * block
    c, j = c + tl.arange(0, wide), j + tl.arange(0, block)
    of_state = c[:, None] * values + j[None, :]
    in_state = (c < width)[:, None] & (j < values)[None, :]
    state = tl.load(start + row * width * values + of_state, mask=in_state, other=0.0)
    first, head, pieces = row // heads * steps, row % heads, tl.cdiv(steps, chunk)
    local = tl.arange(0, chunk)
    for n in range(0, pieces):
        piece = pieces - 1 - n if back else n
        t = piece * chunk + local
        mark = row * (pieces + 1) + (piece + 1 if back else piece)
        tl.store(marks + mark * width * values + of_state, state, mask=in_state)
        at, inside = (first + t) * heads + head, t < steps
        here = inside[:, None] & (c < width)[None, :]
        write = tl.load(x + at[:, None] * width + c[None, :], mask=here, other=0.0)
        value = tl.load(
            v + at[:, None] * values + j[None, :], mask=inside[:, None] & (j < values)[None, :], other=0.0
        )
        if not back:  # what is written fades from the next step on
            at, here = at + heads, here & ((local < chunk - 1) & (t < steps - 1))[:, None]
        place = (at[:, None] + c[None, :] * 0) if single else at[:, None] * width + c[None, :]
        fade = tl.cumprod(tl.load(a + place, mask=here, other=1.0), 0, reverse=not back)
        edge = chunk - 1 if back else 0
        through = tl.sum(tl.where((local == edge)[:, None], fade, 0.0), 0)
        if not back:
            at_first = (first + piece * chunk) * heads + head
            through *= tl.load(a + (at_first + c * 0 if single else at_first * width + c), mask=c < width, other=1.0)
        # Zero takes away all that was, NaN included.
        state = tl.where((through == 0)[:, None], 0.0, state * through[:, None])
        state = tl.dot(tl.trans(write * fade), value, acc=state, input_precision=PRODUCTS, out_dtype=state.dtype)
    mark = row * (pieces + 1) + (0 if back else pieces)
    tl.store(marks + mark * width * values + of_state, state, mask=in_state)


@triton.jit
def _fades(a, at, steps, heads, t, width, c, single: tl.constexpr, chunk: tl.constexpr):  # noqa: ANN001, ANN202
    """a, the products up to each step of the chunk, and those from each to its end: (chunk, channels), 1 outside."""
    local = tl.arange(0, chunk)
    inside = (t < steps)[:, None] & (c < width)[None, :]
    later = inside & ((local < chunk - 1) & (t < steps - 1))[:, None]
    place = (at[:, None] + c[None, :] * 0) if single else at[:, None] * width + c[None, :]
    own = tl.load(a + place, mask=inside, other=1.0)
    next_one = tl.load(a + place + (heads if single else heads * width), mask=later, other=1.0)
    return own, tl.cumprod(own, 0), tl.cumprod(next_one, 0, reverse=True)


@triton.jit
def _one_decay(a, at, inside, chunk: tl.constexpr):  # noqa: ANN001, ANN202
    """P (chunk, chunk) of one decay a head."""
    local = tl.arange(0, chunk)
    decay, behind = tl.load(a + at, mask=inside, other=1.0), local[:, None] - local[None, :]
    return tl.where(behind < 0, 0.0, tl.cumprod(tl.where(behind > 0, decay[:, None], 1.0), 0))


@triton.jit
def _outputs(  # noqa: ANN001, ANN202
    q, k, v, a, marks, y, steps, heads, width, values,
    single: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):
    pieces = tl.cdiv(steps, chunk)
    row, piece = tl.program_id(0).to(tl.int64) // pieces, tl.program_id(0) % pieces
    local, c = tl.arange(0, chunk), tl.arange(0, wide)
    t = piece * chunk + local
    at, inside = (row // heads * steps + t) * heads + row % heads, t < steps
    at_first = (row // heads * steps + piece * chunk) * heads + row % heads
    here = inside[:, None] & (c < width)[None, :]
    query = tl.load(q + at[:, None] * width + c[None, :], mask=here, other=0.0)
    key = tl.load(k + at[:, None] * width + c[None, :], mask=here, other=0.0)
    _, into, _ = _fades(a, at, steps, heads, t, width, c, single, chunk)
    if single:
        pairs = _one_decay(a, at, inside, chunk)
        weights = tl.dot(query, tl.trans(key), input_precision=PRODUCTS, out_dtype=query.dtype) * pairs
    else:
        since, weights = tl.zeros([chunk, wide], query.dtype), tl.zeros([chunk, chunk], query.dtype)
        for i in range(0, chunk):
            place = (at_first + i * heads) * width + c
            known = c < tl.where(piece * chunk + i < steps, width, 0)
            decay = tl.load(a + place, mask=known, other=1.0)
            asks = tl.load(q + place, mask=known, other=0.0)
            since = tl.where((local == i)[:, None], 1.0, since * decay[None, :])
            weight = tl.sum(since * key * asks[None, :], 1)
            weights = tl.where((local == i)[:, None], weight[None, :], weights)
    reached = tl.max(tl.abs(into), 1) > 0  # else nothing of the state is left, NaN included
    query *= into
    marks += (row * (pieces + 1) + piece) * width * values
    for begin in range(0, values, block):
        j = begin + tl.arange(0, block)
        in_state = (c < width)[:, None] & (j < values)[None, :]
        in_values = inside[:, None] & (j < values)[None, :]
        state = tl.load(marks + c[:, None] * values + j[None, :], mask=in_state, other=0.0)
        value = tl.load(v + at[:, None] * values + j[None, :], mask=in_values, other=0.0)
        old = tl.dot(query, state, input_precision=PRODUCTS, out_dtype=query.dtype)
        new = tl.dot(weights, value, input_precision=PRODUCTS, out_dtype=query.dtype)
        tl.store(
            y + at[:, None] * values + j[None, :], tl.where(reached[:, None], old, 0.0) + new, mask=in_values
        )


@triton.jit
def _gradients(  # noqa: ANN001, ANN202
    q, k, v, a, marks, back, dy, dq, dk, dv, dg, steps, heads, width, values,
    single: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):
    """``back``: the gradients by the states, as ``marks`` holds the states: before each chunk and behind the last."""
    pieces = tl.cdiv(steps, chunk)
    row, piece = tl.program_id(0).to(tl.int64) // pieces, tl.program_id(0) % pieces
    local, c = tl.arange(0, chunk), tl.arange(0, wide)
    t = piece * chunk + local
    at, inside = (row // heads * steps + t) * heads + row % heads, t < steps
    at_first = (row // heads * steps + piece * chunk) * heads + row % heads
    here = inside[:, None] & (c < width)[None, :]
    of_keys = at[:, None] * width + c[None, :]
    query, key = tl.load(q + of_keys, mask=here, other=0.0), tl.load(k + of_keys, mask=here, other=0.0)
    own, into, out = _fades(a, at, steps, heads, t, width, c, single, chunk)
    kind: tl.constexpr = query.dtype
    on_weights = tl.zeros([chunk, chunk], kind)
    by_q, by_k = tl.zeros([chunk, wide], kind), tl.zeros([chunk, wide], kind)
    kept = tl.zeros([wide], kind)
    marks += (row * (pieces + 1) + piece) * width * values
    back += (row * (pieces + 1) + piece + 1) * width * values
    for begin in range(0, values, block):
        j = begin + tl.arange(0, block)
        of_state, in_state = c[:, None] * values + j[None, :], (c < width)[:, None] & (j < values)[None, :]
        of_values, in_values = at[:, None] * values + j[None, :], inside[:, None] & (j < values)[None, :]
        value = tl.load(v + of_values, mask=in_values, other=0.0)
        grad = tl.load(dy + of_values, mask=in_values, other=0.0)
        on_weights = tl.dot(grad, tl.trans(value), acc=on_weights, input_precision=PRODUCTS, out_dtype=kind)
        state = tl.load(marks + of_state, mask=in_state, other=0.0)
        by_q = tl.dot(grad, tl.trans(state), acc=by_q, input_precision=PRODUCTS, out_dtype=kind)
        later = tl.load(back + of_state, mask=in_state, other=0.0)
        by_k = tl.dot(value, tl.trans(later), acc=by_k, input_precision=PRODUCTS, out_dtype=kind)
        behind = tl.load(marks + width * values + of_state, mask=in_state, other=0.0)
        kept += tl.sum(later * behind, 1)
    by_q, by_k = tl.where(into == 0, 0.0, by_q * into), tl.where(out == 0, 0.0, by_k * out)
    if single:
        pairs = _one_decay(a, at, inside, chunk)
        weights = tl.dot(query, tl.trans(key), input_precision=PRODUCTS, out_dtype=kind) * pairs
        on_weights *= pairs
        by_q = tl.dot(on_weights, key, acc=by_q, input_precision=PRODUCTS, out_dtype=kind)
        by_k = tl.dot(tl.trans(on_weights), query, acc=by_k, input_precision=PRODUCTS, out_dtype=kind)
    else:
        since, weights = tl.zeros([chunk, wide], kind), tl.zeros([chunk, chunk], kind)
        for i in range(0, chunk):
            place = (at_first + i * heads) * width + c
            known = c < tl.where(piece * chunk + i < steps, width, 0)
            decay = tl.load(a + place, mask=known, other=1.0)
            asks = tl.load(q + place, mask=known, other=0.0)
            mine = (local == i)[:, None]
            since = tl.where(mine, 1.0, since * decay[None, :])
            held = since * key
            weights = tl.where(mine, tl.sum(held * asks[None, :], 1)[None, :], weights)
            gain = tl.sum(tl.where(mine, on_weights, 0.0), 0)[:, None]
            by_q += tl.where(mine, tl.sum(held * gain, 0)[None, :], 0.0)
            by_k += since * gain * asks[None, :]
    tl.store(dq + of_keys, by_q, mask=here)
    tl.store(dk + of_keys, by_k, mask=here)
    by_decay = tl.cumsum(query * by_q - key * by_k, 0, reverse=True) + kept[None, :]
    by_decay = tl.where(own == 0, 0.0, by_decay)
    if single:
        tl.store(dg + at, tl.sum(tl.where(here, by_decay, 0.0), 1), mask=inside)
    else:
        tl.store(dg + of_keys, by_decay, mask=here)
    key *= out
    for begin in range(0, values, block):
        j = begin + tl.arange(0, block)
        of_values, in_values = at[:, None] * values + j[None, :], inside[:, None] & (j < values)[None, :]
        grad = tl.load(dy + of_values, mask=in_values, other=0.0)
        in_state = (c < width)[:, None] & (j < values)[None, :]
        later = tl.load(back + c[:, None] * values + j[None, :], mask=in_state, other=0.0)
        by_v = tl.dot(key, later, input_precision=PRODUCTS, out_dtype=kind)
        by_v = tl.dot(tl.trans(weights), grad, acc=by_v, input_precision=PRODUCTS, out_dtype=kind)
        tl.store(dv + of_values, by_v, mask=in_values)


_WARPS = 8
"""Of each program: with four, the tiles of a chunk do not fit into the registers."""


def _shape(width: int, values: int) -> tuple[int, int, int]:
    """Steps of a chunk, channels of the keys as a power of two, and columns at a time: less of them for wide keys."""
    wide = triton_parts.power(width)
    chunk = triton_parts.CHUNK if wide <= 64 else triton_parts.CHUNK // 2
    return chunk, wide, triton_parts.power(values, triton_parts.VALUES if wide <= 128 else 16)


def _walk(x: Tensor, v: Tensor, a: Tensor, start: Tensor, back: bool) -> Tensor:
    """States or their gradients at the borders of chunks: (B,H,N+1,K,V)."""
    batch, steps, heads, width = x.shape
    values = v.shape[3]
    chunk, wide, block = _shape(width, values)
    wide = min(wide, triton_parts.KEYS)
    marks = x.new_empty(batch, heads, triton.cdiv(steps, chunk) + 1, width, values)
    grid = batch * heads, triton.cdiv(width, wide), triton.cdiv(values, block)
    flags = {"back": back, "single": a.shape[3] == 1, "chunk": chunk, "wide": wide, "block": block}
    _states[grid](x, v, a, start, marks, steps, heads, width, values, **flags, num_warps=_WARPS)
    return marks


def _plan(q: Tensor, v: Tensor, a: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and constants of the kernels that have a program for each chunk."""
    batch, steps, heads, width = q.shape
    chunk, wide, block = _shape(width, v.shape[3])
    flags = {"single": a.shape[3] == 1, "chunk": chunk, "wide": wide, "block": block, "num_warps": _WARPS}
    return (batch * heads * triton.cdiv(steps, chunk),), (steps, heads, width, v.shape[3]), flags


def forward(q: Tensor, k: Tensor, v: Tensor, a: Tensor, s0: Tensor) -> tuple[Tensor, Tensor]:
    """y and the states before each chunk and behind the last, (B,H,N+1,K,V).

    q, k (B,T,H,K), v (B,T,H,V), a (B,T,H,K) or (B,T,H,1), s0 (B,H,K,V): contiguous, of one dtype, none of them empty.
    """
    y, marks = torch.empty_like(v), _walk(k, v, a, s0, False)
    grid, sizes, flags = _plan(q, v, a)
    _outputs[grid](q, k, v, a, marks, y, *sizes, **flags)
    return y, marks


def backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], grad: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the logarithm of a (zero where a is) and s0.

    ``saved``: q, k, v, a and the states; ``grad`` of y and ``last`` of the last state, contiguous.
    """
    q, k, v, a, marks = saved
    dq, dk, dv, dg = (torch.empty_like(x) for x in (q, k, v, a))
    back = _walk(q, grad, a, last, True)
    grid, sizes, flags = _plan(q, v, a)
    _gradients[grid](q, k, v, a, marks, back, grad, dq, dk, dv, dg, *sizes, **flags)
    return dq, dk, dv, dg, back[:, :, 0].clone()
