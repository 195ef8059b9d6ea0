"""Triton kernels of the loop in :mod:`transduce.ops.slstm`: the same buffers, all steps in one launch.

Laid out as in :mod:`.rnn_triton`: a program holds the recurrent weights of one head, and the states of 16 rows. Imports
triton: import it lazily.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .rnn_triton import _of_gate, _plan, _tanh, _times
from .triton_parts import cuts


@triton.jit
def _slstm(  # noqa: ANN001, ANN202
    gates, hs, cs, ns, ms, wins, closing, weight, resets, held, steps, heads, rows, width,
    restarts: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """gates: pre-activations in, exp(i - m'), exp(l - m'), tanh(z), sigmoid(o) out; the first of all states in, the
    others out; wins: whether i is m', closing: sigmoid(-f), both out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_i = _of_gate(weight, 0, head, heads, width, True, wide)
    u_f = _of_gate(weight, 1, head, heads, width, True, wide)
    u_z = _of_gate(weight, 2, head, heads, width, True, wide)
    u_o = _of_gate(weight, 3, head, heads, width, True, wide)
    of_first = row[:, None] * width + c[None, :]
    h, s = tl.load(hs + of_first, mask=inside, other=0.0), tl.load(cs + of_first, mask=inside, other=0.0)
    n, m = tl.load(ns + of_first, mask=inside, other=0.0), tl.load(ms + of_first, mask=inside, other=0.0)
    for t in range(0, steps):
        at = row + t * (heads * rows)
        if restarts:
            cut = (tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None]
            h, s, n, m = tl.where(cut, 0.0, h), tl.where(cut, 0.0, s), tl.where(cut, 0.0, n), tl.where(cut, 0.0, m)
        of_gates, of_state = at[:, None] * 4 * width + c[None, :], at[:, None] * width + c[None, :]
        of_next = (at + heads * rows)[:, None] * width + c[None, :]
        i = tl.load(gates + of_gates, mask=inside, other=0.0) + _times(h, u_i)
        f = tl.load(gates + of_gates + width, mask=inside, other=0.0) + _times(h, u_f)
        z = _tanh(tl.load(gates + of_gates + 2 * width, mask=inside, other=0.0) + _times(h, u_z))
        o = tl.sigmoid(tl.load(gates + of_gates + 3 * width, mask=inside, other=0.0) + _times(h, u_o))
        kept = tl.minimum(f, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(f))) + m
        begins = n == 0
        win = begins | (i >= kept)
        top = tl.where(win, i, kept)
        # Where the history begins, what the exponential of l - m' would multiply is zero.
        write, keep = tl.exp(i - top), tl.where(begins, 0.0, tl.exp(tl.where(begins, 0.0, kept - top)))
        s_new, n_new = keep * s + write * z, keep * n + write
        h_new = o * s_new / n_new
        tl.store(gates + of_gates, write, mask=inside)
        tl.store(gates + of_gates + width, keep, mask=inside)
        tl.store(gates + of_gates + 2 * width, z, mask=inside)
        tl.store(gates + of_gates + 3 * width, o, mask=inside)
        tl.store(wins + of_state, win.to(tl.uint8), mask=inside)
        tl.store(closing + of_state, tl.sigmoid(-f), mask=inside)
        if masked:
            stays = (tl.load(held + at, mask=b < rows, other=0) != 0)[:, None]
            h, s = tl.where(stays, h, h_new), tl.where(stays, s, s_new)
            n, m = tl.where(stays, n, n_new), tl.where(stays, m, top)
        else:
            h, s, n, m = h_new, s_new, n_new, top
        tl.store(hs + of_next, h, mask=inside)
        tl.store(cs + of_next, s, mask=inside)
        tl.store(ns + of_next, n, mask=inside)
        tl.store(ms + of_next, m, mask=inside)


@triton.jit
def _slstm_back(  # noqa: ANN001, ANN202
    dh, d, hs, ns, read_c, read_n, gates, wins, closing, weight, by_h, by_c, by_n, by_m, resets, held,
    steps, heads, rows, width,
    restarts: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):
    """dh: gradients by the outputs; d: by the pre-activations, out; by_h, ...: by the last states in, by the first
    out."""
    head, b, c = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, wide)
    inside, row = (b < rows)[:, None] & (c < width)[None, :], head * rows + b.to(tl.int64)
    u_i = _of_gate(weight, 0, head, heads, width, False, wide)
    u_f = _of_gate(weight, 1, head, heads, width, False, wide)
    u_z = _of_gate(weight, 2, head, heads, width, False, wide)
    u_o = _of_gate(weight, 3, head, heads, width, False, wide)
    of_first = row[:, None] * width + c[None, :]
    back, on_c = tl.load(by_h + of_first, mask=inside, other=0.0), tl.load(by_c + of_first, mask=inside, other=0.0)
    on_n, on_m = tl.load(by_n + of_first, mask=inside, other=0.0), tl.load(by_m + of_first, mask=inside, other=0.0)
    for step in range(0, steps):
        at = row + (steps - 1 - step) * (heads * rows)
        of_gates, of_state = at[:, None] * 4 * width + c[None, :], at[:, None] * width + c[None, :]
        of_next = (at + heads * rows)[:, None] * width + c[None, :]
        write = tl.load(gates + of_gates, mask=inside, other=0.0)
        keep = tl.load(gates + of_gates + width, mask=inside, other=0.0)
        z = tl.load(gates + of_gates + 2 * width, mask=inside, other=0.0)
        o = tl.load(gates + of_gates + 3 * width, mask=inside, other=0.0)
        h = tl.load(hs + of_next, mask=inside, other=0.0)
        back += tl.load(dh + of_state, mask=inside, other=0.0)
        share = back / tl.load(ns + of_next, mask=inside, other=1.0)
        of_c, of_n = on_c + share * o, on_n - share * h
        of_i = (of_n + of_c * z) * write
        of_l = of_c * tl.load(read_c + of_state, mask=inside, other=0.0)
        of_l = (of_l + of_n * tl.load(read_n + of_state, mask=inside, other=0.0)) * keep
        of_m = on_m - of_i - of_l
        win = tl.load(wins + of_state, mask=inside, other=0) != 0
        of_i += tl.where(win, of_m, 0.0)
        of_l += tl.where(win, 0.0, of_m)
        d_f = of_l * tl.load(closing + of_state, mask=inside, other=0.0)
        d_z, d_o = of_c * write * (1.0 - z * z), back * h * (1.0 - o)
        through_c, through_n, through_m, left = of_c * keep, of_n * keep, of_l, 0.0 * back
        if masked:
            stays = (tl.load(held + at, mask=b < rows, other=0) != 0)[:, None]
            of_i, d_f = tl.where(stays, 0.0, of_i), tl.where(stays, 0.0, d_f)
            d_z, d_o = tl.where(stays, 0.0, d_z), tl.where(stays, 0.0, d_o)
            through_c, through_n = tl.where(stays, on_c, through_c), tl.where(stays, on_n, through_n)
            through_m, left = tl.where(stays, on_m, through_m), tl.where(stays, back, 0.0)
        tl.store(d + of_gates, of_i, mask=inside)
        tl.store(d + of_gates + width, d_f, mask=inside)
        tl.store(d + of_gates + 2 * width, d_z, mask=inside)
        tl.store(d + of_gates + 3 * width, d_o, mask=inside)
        on_c, on_n, on_m = through_c, through_n, through_m
        back = left + _times(of_i, u_i) + _times(d_f, u_f) + _times(d_z, u_z) + _times(d_o, u_o)
        if restarts:
            cut = (tl.load(resets + at, mask=b < rows, other=0) != 0)[:, None]
            back, on_c = tl.where(cut, 0.0, back), tl.where(cut, 0.0, on_c)
            on_n, on_m = tl.where(cut, 0.0, on_n), tl.where(cut, 0.0, on_m)
    tl.store(by_h + of_first, back, mask=inside)
    tl.store(by_c + of_first, on_c, mask=inside)
    tl.store(by_n + of_first, on_n, mask=inside)
    tl.store(by_m + of_first, on_m, mask=inside)


def steps(
    buffers: Tensor,
    gates: Tensor,
    kept: tuple[Tensor, Tensor],
    weight: Tensor,
    flags: tuple[Tensor | None, Tensor | None],
    heads: int,
) -> None:
    """All steps forward, see :func:`_slstm`. buffers (4,T+1,H*B,K): h, c, n, m; kept: wins (bool) and closing; flags:
    restarts and held, (T,H*B,1) or None."""
    wins, closing = kept
    grid, sizes, constants = _plan(closing, heads)
    if closing.numel():
        marks = [cuts(x, closing) for x in flags]
        constants |= {"restarts": flags[0] is not None, "masked": flags[1] is not None}
        _slstm[grid](gates, *buffers, cuts(wins, wins), closing, weight, *marks, *sizes, **constants)


def steps_back(
    grads: tuple[Tensor, Tensor, list[Tensor]],
    saved: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor],
    weight: Tensor,
    flags: tuple[Tensor | None, Tensor | None],
    heads: int,
) -> None:
    """All steps backward, see :func:`_slstm_back`. grads: dh, d and those by the states, which are made those by the
    first; saved: h, n, the c and n that were read, gates."""
    dh, d, by_states = grads
    wins, closing = kept
    grid, sizes, constants = _plan(closing, heads)
    if closing.numel():
        marks = [cuts(x, closing) for x in flags]
        constants |= {"restarts": flags[0] is not None, "masked": flags[1] is not None}
        _slstm_back[grid](
            dh, d, *saved, cuts(wins, wins), closing, weight, *by_states, *marks, *sizes, **constants
        )
