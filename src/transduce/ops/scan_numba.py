"""Kernels of :func:`transduce.ops.linear_scan`: one pass over the data, rows of channels in the inner loop.

A thread owns whole (batch row, block of channels) strips, so no two threads share a carry, and the carry of a
strip is the row it wrote last, which is still in the first-level cache. Where there are fewer strips than threads, time
is cut into pieces: each piece runs as if its state were zero and keeps the product of its decays, and then what it
lacks, a state that fades with these decays, is added to it for as long as anything of it is left. Gates that forget
make this second pass short; decays of one make it as long as the first. Imports numba; import it lazily.
"""

from __future__ import annotations

import math

import numba
import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_bytes, as_size, thread_number, threads_for
from .lanes import Lanes, lanewise

_STRIP_BYTES = 1024
"""A row is cut into strips no narrower than this. Two threads on halves of a shorter row fetch each other's
lines: measured on two cores, one thread is twice as fast at 64 channels."""

_TINY = 1.2e-38
"""What a piece of time lacks is nothing where it is below the least normal float32."""
_LOOK = 16
"""Steps after which that is looked at again."""


def _step(a: Lanes, b: Lanes, before: Lanes) -> tuple[Lanes]:
    return (a * before + b,)


def _step_and_product(a: Lanes, b: Lanes, before: Lanes, product: Lanes) -> tuple[Lanes, Lanes]:
    return a * before + b, a * product


def _add_lacking(a: Lanes, lacking: Lanes, h: Lanes) -> tuple[Lanes, Lanes]:
    lacking = a * lacking
    return lacking, h + lacking


def _step_back(grad: Lanes, a: Lanes, before: Lanes, carry: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """da, db and the carry of the step before."""
    u = grad + carry
    return u * before.conj(), u, u * a.conj()


def _fade(a: Lanes, carry: Lanes) -> tuple[Lanes]:
    return (carry * a.conj(),)


def _add_lacking_back(a: Lanes, before: Lanes, lacking: Lanes, da: Lanes, db: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    return da + lacking * before.conj(), db + lacking, lacking * a.conj()


def _sum(x: Lanes, y: Lanes) -> tuple[Lanes]:
    return (x + y,)


_step_up, _step_down = lanewise(_step, inputs=3), lanewise(_step, inputs=3, falling=True)
_both_up, _both_down = lanewise(_step_and_product, inputs=4), lanewise(_step_and_product, inputs=4, falling=True)
_amend_row = lanewise(_add_lacking, inputs=3)
_back_up, _back_down = lanewise(_step_back, inputs=4), lanewise(_step_back, inputs=4, falling=True)
_fade_row, _sum_rows = lanewise(_fade, inputs=2), lanewise(_sum, inputs=2)
_amend_back_row = lanewise(_add_lacking_back, inputs=5)


@numba.njit
def _vanished(row) -> bool:  # noqa: ANN001
    """Whether nothing normal is left; not where a number is NaN or infinite."""
    for x in row:
        if not (abs(x.real) < _TINY and abs(x.imag) < _TINY):
            return False
    return True


@numba.njit
def _any_reset(resets, first, last, reverse) -> bool:  # noqa: ANN001
    for s in range(first, last):
        if resets[resets.size - 1 - s if reverse else s]:
            return True
    return False


@numba.njit
def _pass_on(lacking, part, restarts) -> None:  # noqa: ANN001
    """What the next piece lacks, from what this one lacks: product * lacking + end, unless the piece restarts. Where
    nothing is lacking a product that overflowed does not make it NaN."""
    for i in range(lacking.size):
        if restarts or lacking[i] == 0:
            lacking[i] = part[1, i]
        else:
            lacking[i] = part[0, i] * lacking[i] + part[1, i]


def _forward(data) -> None:  # noqa: ANN001
    """tensors a, b, h0, out, resets, parts; sizes batch, steps, width, blocks, pieces, threads, reverse.

    ``parts`` (batch, pieces, 3, width), missing where there is one piece: the product of a piece's decays, its last
    state, and room for what it lacks.
    """
    batch, steps, width = as_size(data[6]), as_size(data[7]), as_size(data[8])
    blocks, pieces, threads, reverse = as_size(data[9]), as_size(data[10]), as_size(data[11]), as_size(data[12])
    a = carray(data[0], (batch, steps, width))
    b = carray(data[1], (batch, steps, width))
    h0 = carray(data[2], (batch, width))
    out = carray(data[3], (batch, steps, width))
    has_resets = as_size(data[4]) != 0
    resets = carray(as_bytes(data[4]), (batch, steps))
    parts = carray(data[5], (batch, pieces, 3, width))
    jobs, me = batch * blocks * pieces, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block, piece = job // (blocks * pieces), job // pieces % blocks, job % pieces
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        before = h0[row, lo:hi]
        product = before  # asked for only between the first piece and the last
        if piece > 0:
            product, before = parts[row, piece, 0, lo:hi], parts[row, piece, 1, lo:hi]
            product[:] = 1
            before[:] = 0
        for s in range(steps * piece // pieces, steps * (piece + 1) // pieces):
            t = steps - 1 - s if reverse else s
            now = out[row, t, lo:hi]
            if has_resets and resets[row, t]:
                now[:] = b[row, t, lo:hi]
                if piece > 0:
                    product[:] = 0
            elif 0 < piece < pieces - 1:
                rows = (a[row, t, lo:hi], b[row, t, lo:hi], before, product, now, product)
                if reverse:
                    _both_down(rows)
                else:
                    _both_up(rows)
            elif reverse:
                _step_down((a[row, t, lo:hi], b[row, t, lo:hi], before, now))
            else:
                _step_up((a[row, t, lo:hi], b[row, t, lo:hi], before, now))
            before = now
        if pieces > 1:
            parts[row, piece, 1, lo:hi] = before


def _amend(data) -> None:  # noqa: ANN001
    """After the forward kernel, with the same arguments: what pieces lack, c_t = a_t c_(t-1) from the state before the
    piece, is added."""
    batch, steps, width = as_size(data[6]), as_size(data[7]), as_size(data[8])
    blocks, pieces, threads, reverse = as_size(data[9]), as_size(data[10]), as_size(data[11]), as_size(data[12])
    a = carray(data[0], (batch, steps, width))
    out = carray(data[3], (batch, steps, width))
    has_resets = as_size(data[4]) != 0
    resets = carray(as_bytes(data[4]), (batch, steps))
    parts = carray(data[5], (batch, pieces, 3, width))
    jobs, me = batch * blocks * pieces, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block, piece = job // (blocks * pieces), job // pieces % blocks, job % pieces
        if piece == 0:
            continue
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        lacking = parts[row, piece, 2, lo:hi]
        lacking[:] = parts[row, 0, 1, lo:hi]
        for earlier in range(1, piece):
            first, last = steps * earlier // pieces, steps * (earlier + 1) // pieces
            restarts = has_resets and _any_reset(resets[row], first, last, reverse)
            _pass_on(lacking, parts[row, earlier, :, lo:hi], restarts)
        for s in range(steps * piece // pieces, steps * (piece + 1) // pieces):
            t = steps - 1 - s if reverse else s
            if (has_resets and resets[row, t]) or (s % _LOOK == 0 and _vanished(lacking)):
                break
            _amend_row((a[row, t, lo:hi], lacking, out[row, t, lo:hi], lacking, out[row, t, lo:hi]))


def _backward(data) -> None:  # noqa: ANN001
    """tensors grad, a, h, h0, da, db, dh0, resets, parts; sizes batch, steps, width, blocks, pieces, threads, reverse,
    rows kept of da and of db (``steps``, or ``pieces`` where that gradient is not wanted: one row of scratch each).

    ``parts`` as in the forward kernel; here the last piece is the first to run, and lacks nothing.
    """
    batch, steps, width = as_size(data[9]), as_size(data[10]), as_size(data[11])
    blocks, pieces, threads, reverse = as_size(data[12]), as_size(data[13]), as_size(data[14]), as_size(data[15])
    kept_a, kept_b = as_size(data[16]), as_size(data[17])
    grad = carray(data[0], (batch, steps, width))
    a = carray(data[1], (batch, steps, width))
    h = carray(data[2], (batch, steps, width))
    h0 = carray(data[3], (batch, width))
    da = carray(data[4], (batch, kept_a, width))
    db = carray(data[5], (batch, kept_b, width))
    dh0 = carray(data[6], (batch, width))
    has_resets = as_size(data[7]) != 0
    resets = carray(as_bytes(data[7]), (batch, steps))
    parts = carray(data[8], (batch, pieces, 3, width))
    jobs, me = batch * blocks * pieces, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block, piece = job // (blocks * pieces), job // pieces % blocks, job % pieces
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        carry = dh0[row, lo:hi]
        product = carry  # asked for only between the first piece and the last
        if pieces > 1:
            product, carry = parts[row, piece, 0, lo:hi], parts[row, piece, 1, lo:hi]
            product[:] = 1
        carry[:] = 0
        for s in range(steps * (piece + 1) // pieces - 1, steps * piece // pieces - 1, -1):
            t = steps - 1 - s if reverse else s
            before = h0[row, lo:hi]
            if s > 0:
                before = h[row, t + 1 if reverse else t - 1, lo:hi]
            da_now = da[row, t if kept_a == steps else piece, lo:hi]
            db_now = db[row, t if kept_b == steps else piece, lo:hi]
            rows = (grad[row, t, lo:hi], a[row, t, lo:hi], before, carry, da_now, db_now, carry)
            if reverse:
                _back_up(rows)
            else:
                _back_down(rows)
            restart = has_resets and resets[row, t]
            if restart:
                da_now[:] = 0
                carry[:] = 0
            if 0 < piece < pieces - 1:
                if restart:
                    product[:] = 0
                else:
                    _fade_row((a[row, t, lo:hi], product, product))


def _amend_back(data) -> None:  # noqa: ANN001
    """After the backward kernel, with the same arguments: what reaches a piece from the pieces behind it."""
    batch, steps, width = as_size(data[9]), as_size(data[10]), as_size(data[11])
    blocks, pieces, threads, reverse = as_size(data[12]), as_size(data[13]), as_size(data[14]), as_size(data[15])
    kept_a, kept_b = as_size(data[16]), as_size(data[17])
    a = carray(data[1], (batch, steps, width))
    h = carray(data[2], (batch, steps, width))
    h0 = carray(data[3], (batch, width))
    da = carray(data[4], (batch, kept_a, width))
    db = carray(data[5], (batch, kept_b, width))
    dh0 = carray(data[6], (batch, width))
    has_resets = as_size(data[7]) != 0
    resets = carray(as_bytes(data[7]), (batch, steps))
    parts = carray(data[8], (batch, pieces, 3, width))
    jobs, me = batch * blocks * pieces, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, block, piece = job // (blocks * pieces), job // pieces % blocks, job % pieces
        lo, hi = width * block // blocks, width * (block + 1) // blocks
        lacking = parts[row, piece, 2, lo:hi]
        lacking[:] = 0
        for later in range(pieces - 1, piece, -1):
            first, last = steps * later // pieces, steps * (later + 1) // pieces
            restarts = has_resets and _any_reset(resets[row], first, last, reverse)
            _pass_on(lacking, parts[row, later, :, lo:hi], restarts)
        for s in range(steps * (piece + 1) // pieces - 1, steps * piece // pieces - 1, -1):
            if s % _LOOK == 0 and _vanished(lacking):
                break
            t = steps - 1 - s if reverse else s
            before = h0[row, lo:hi]
            if s > 0:
                before = h[row, t + 1 if reverse else t - 1, lo:hi]
            da_now = da[row, t if kept_a == steps else piece, lo:hi]
            db_now = db[row, t if kept_b == steps else piece, lo:hi]
            if has_resets and resets[row, t]:
                _sum_rows((db_now, lacking, db_now))
                lacking[:] = 0
                break
            _amend_back_row((a[row, t, lo:hi], before, lacking, da_now, db_now, da_now, db_now, lacking))
        if piece == 0:
            _sum_rows((parts[row, 0, 1, lo:hi], lacking, dh0[row, lo:hi]))


_forward_kernel, _amend_kernel = Kernel(_forward), Kernel(_amend)
_backward_kernel, _amend_back_kernel = Kernel(_backward), Kernel(_amend_back)


def _plan(a: Tensor) -> tuple[int, int, int]:
    """Into how many blocks the channels and into how many pieces the steps are cut so that every thread gets the same
    number of strips, and the threads."""
    batch, steps, width = a.shape
    threads = threads_for(a.numel())
    blocks = min(threads // math.gcd(batch, threads), max(1, width * a.element_size() // _STRIP_BYTES))
    strips = batch * blocks
    pieces = 1 if strips >= threads else min(steps, threads // math.gcd(strips, threads))
    return blocks, pieces, min(threads, strips * pieces)


def _parts(a: Tensor, pieces: int) -> Tensor | None:
    return a.new_empty((a.shape[0], pieces, 3, a.shape[2])) if pieces > 1 else None


def forward(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    """All arguments contiguous, of one dtype and full shape: (B,T,D), (B,T,D), (B,D), (B,T)."""
    out = torch.empty_like(b)
    if out.numel():
        blocks, pieces, threads = _plan(a)
        tensors = a, b, h0, out, resets, _parts(a, pieces)
        sizes = [*a.shape, blocks, pieces, threads, int(reverse)]
        _forward_kernel.launch(a.dtype, tensors, sizes, threads)
        if pieces > 1:
            _amend_kernel.launch(a.dtype, tensors, sizes, threads)
    return out


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0 from ``saved`` = (a, h, h0); of a and b only where ``wanted``, else
    scratch."""
    a, h, h0 = saved
    batch, steps, width = a.shape
    dh0 = torch.empty_like(h0)  # the kernel sets it to zero first
    if not a.numel():
        return torch.empty_like(a), torch.empty_like(a), dh0.zero_()
    blocks, pieces, threads = _plan(a)
    da, db = (torch.empty_like(a) if want else a.new_empty((batch, pieces, width)) for want in wanted)
    tensors = grad, a, h, h0, da, db, dh0, resets, _parts(a, pieces)
    sizes = [batch, steps, width, blocks, pieces, threads, int(reverse), da.shape[1], db.shape[1]]
    _backward_kernel.launch(a.dtype, tensors, sizes, threads)
    if pieces > 1:
        _amend_back_kernel.launch(a.dtype, tensors, sizes, threads)
    return da, db, dh0
