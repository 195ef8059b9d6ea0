"""Kernels of the matrix-state recurrence on the CPU: tiles of the state stay in registers, see :mod:`.tiles`.

Forward, a thread owns the columns of one head's state that a tile covers. Backward, with D_t = dL/dS_t in full,

    D_t = q_t dy_t^T + diag(a_(t+1)) D_(t+1),   dq_t = S_t dy_t,   dk_t = D_t v_t,   dv_t = D_t^T k_t,
    da_t = sum over values of D_t * S_(t-1),

dv is a pass over columns from the last step to the first; dq, dk and da are passes over rows, chunk by chunk from the last:
the state before a chunk was kept, so S is made again, forward, and D runs backward over it. Imports numba; import it lazily.
"""

from __future__ import annotations

import torch
from numba import carray
from torch import Tensor

from .kernels import Kernel, as_size, thread_number, threads_for
from .tiles import ROWS, block, keys_sweep, keys_sweep_back, keys_sweep_back_graded, values_sweep, values_sweep_back

CHUNK = 64
"""Steps between two states that are kept for the backward pass."""


def _forward(data) -> None:  # noqa: ANN001
    """tensors q, k, v, a, state, y, kept; sizes batch, steps, heads, width, values, channels of a, block, threads."""
    batch, steps, heads = as_size(data[7]), as_size(data[8]), as_size(data[9])
    width, values, channels = as_size(data[10]), as_size(data[11]), as_size(data[12])
    size, threads = as_size(data[13]), as_size(data[14])
    pieces = (steps + CHUNK - 1) // CHUNK
    state = carray(data[4], (batch, heads, width, values))
    keeping = as_size(data[6]) != 0
    kept = carray(data[6], (batch, heads, pieces, width, values))
    across = values // size
    jobs, me = batch * heads * across, thread_number()
    by_channel = 1 if channels > 1 else 0
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // across, job % across * size
        b, h = row // heads, row % heads
        for piece in range(pieces):
            start = piece * CHUNK
            count = min(CHUNK, steps - start)
            if keeping:
                kept[b, h, piece, :, lo : lo + size] = state[b, h, :, lo : lo + size]
            at = (b * steps + start) * heads + h
            for r in range(0, width, ROWS):
                values_sweep(
                    (data[4], data[3], data[1], data[0], data[2], data[5]),
                    (
                        (row * width + r) * values + lo, at * channels + r * by_channel, at * width + r,
                        at * values + lo, values, heads * channels, by_channel, heads * width, heads * values,
                        count, 1 if r == 0 else 0,
                    ),
                )  # fmt: skip


def _backward_values(data) -> None:  # noqa: ANN001
    """tensors q, k, grad, a, state (in: dL/dS behind the end, out: before the beginning), dv; sizes as for
    :func:`_forward`."""
    batch, steps, heads = as_size(data[6]), as_size(data[7]), as_size(data[8])
    width, values, channels = as_size(data[9]), as_size(data[10]), as_size(data[11])
    size, threads = as_size(data[12]), as_size(data[13])
    across = values // size
    jobs, me = batch * heads * across, thread_number()
    by_channel = 1 if channels > 1 else 0
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // across, job % across * size
        b, h = row // heads, row % heads
        for back in range(0, steps, CHUNK):
            count = min(CHUNK, steps - back)
            at = (b * steps + steps - 1 - back) * heads + h
            for r in range(0, width, ROWS):
                values_sweep_back(
                    (data[4], data[3], data[0], data[1], data[2], data[5]),
                    (
                        (row * width + r) * values + lo, at * channels + r * by_channel, at * width + r,
                        at * values + lo, values, -heads * channels, by_channel, -heads * width, -heads * values,
                        count, 1 if r == 0 else 0,
                    ),
                )  # fmt: skip


def _backward_keys(data) -> None:  # noqa: ANN001
    """tensors q, k, v, grad, a, kept, dlast (dL/dS behind the end), dq, dk, da (or none), and scratch: packed a (N,C,S),
    states (N,C,R,S), tile (N,R,S), tiles (N,V,S) with N threads, C steps, S the block, R rows; sizes as above."""
    batch, steps, heads = as_size(data[14]), as_size(data[15]), as_size(data[16])
    width, values, channels = as_size(data[17]), as_size(data[18]), as_size(data[19])
    size, threads = as_size(data[20]), as_size(data[21])
    pieces = (steps + CHUNK - 1) // CHUNK
    a = carray(data[4], (batch, steps, heads, channels))
    kept = carray(data[5], (batch, heads, pieces, width, values))
    last = carray(data[6], (batch, heads, width, values))
    graded = as_size(data[9]) != 0
    decays = carray(data[10], (threads, CHUNK, size))
    tile = carray(data[12], (threads, ROWS, size))
    tiles = carray(data[13], (threads, values, size))
    across = width // size
    jobs, me = batch * heads * across, thread_number()
    for job in range(jobs * me // threads, jobs * (me + 1) // threads):
        row, lo = job // across, job % across * size
        b, h = row // heads, row % heads
        for c in range(values):
            for i in range(size):
                tiles[me, c, i] = last[b, h, lo + i, c]
        for piece in range(pieces - 1, -1, -1):
            start = piece * CHUNK
            count = min(CHUNK, steps - start)
            for t in range(count):
                for i in range(size):
                    decays[me, t, i] = a[b, start + t, h, lo + i if channels > 1 else 0]
            at = (b * steps + start) * heads + h
            packed = me * CHUNK * size
            for c in range(0, values, ROWS):
                for r in range(ROWS):
                    for i in range(size):
                        tile[me, r, i] = kept[b, h, piece, lo + i, c + r]
                numbers = (
                    at * width + lo, at * values + c, heads * width, heads * values, count, 1 if c == 0 else 0,
                )  # fmt: skip
                keys_sweep(
                    (data[12], data[10], data[1], data[2], data[3], data[7], data[11]),
                    (me * ROWS * size, *numbers, packed),
                )
                pointers = (data[13], data[10], data[0], data[2], data[3], data[8], data[9], data[11])
                if graded:
                    keys_sweep_back_graded(pointers, ((me * values + c) * size, *numbers, packed))
                else:
                    keys_sweep_back(pointers, ((me * values + c) * size, *numbers, packed))


_forward_kernel, _values_kernel, _keys_kernel = Kernel(_forward), Kernel(_backward_values), Kernel(_backward_keys)


def _plan(q: Tensor, v: Tensor, a: Tensor, jobs: int) -> tuple[list[int], int]:
    """The sizes that every kernel is told, and the threads. A number of the state and step is a few operations."""
    batch, steps, heads, width = q.shape
    threads = max(1, min(threads_for(batch * steps * heads * width * v.shape[3] // 8), jobs))
    return [batch, steps, heads, width, v.shape[3], a.shape[3], block(q.dtype), threads], threads


def forward(q: Tensor, k: Tensor, v: Tensor, a: Tensor, s0: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the last state and, with ``keep``, the states before each chunk (B,H,N,K,V).

    q, k (B,T,H,K), v (B,T,H,V), a (B,T,H,K) or (B,T,H,1), s0 (B,H,K,V): contiguous, of one dtype, K and V multiples of
    :func:`block`, T >= 1.
    """
    batch, steps, heads, width = q.shape
    y, state = torch.empty_like(v), s0.clone(memory_format=torch.contiguous_format)
    pieces = -(-steps // CHUNK)
    kept = q.new_empty(batch, heads, pieces, width, v.shape[3]) if keep else None
    sizes, threads = _plan(q, v, a, batch * heads * (v.shape[3] // block(q.dtype)))
    _forward_kernel.launch(q.dtype, (q, k, v, a, state, y, kept), sizes, threads)
    return y, state, kept


def backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], grad: Tensor, last: Tensor, graded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of q, k, v, a (None unless ``graded``; (B,T,H,K) also for one decay a head) and s0.

    ``saved``: q, k, v, a and the kept states; ``grad`` of y and ``last`` of the last state, contiguous.
    """
    q, k, v, a, kept = saved
    first, dv = last.clone(memory_format=torch.contiguous_format), torch.empty_like(v)
    size, rows = block(q.dtype), q.shape[0] * q.shape[2]
    sizes, threads = _plan(q, v, a, rows * (v.shape[3] // size))
    _values_kernel.launch(q.dtype, (q, k, grad, a, first, dv), sizes, threads)
    sizes, threads = _plan(q, v, a, rows * (q.shape[3] // size))
    dq, dk, da = torch.empty_like(q), torch.empty_like(k), torch.empty_like(q) if graded else None
    scratch = [(CHUNK, size), (CHUNK, ROWS, size), (ROWS, size), (v.shape[3], size)]
    room = [q.new_empty(threads, *shape) for shape in scratch]
    _keys_kernel.launch(q.dtype, (q, k, v, grad, a, kept, last, dq, dk, da, *room), sizes, threads)
    return dq, dk, dv, da, first
