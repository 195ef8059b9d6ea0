"""Lattice's memory in parallel inside chunks, an approximation: directions and norms of the slots are those at the
start of a chunk for all of its steps, which makes the update linear. With chunks of one step it is exact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.seq import zero_masked
from .matrix_state import check_flags, chunks, cuts, work_dtype
from .orthogonal import FLOOR, check_slots
from .retention import _decays


class FrozenState(NamedTuple):
    """``start`` (B,H,M,D): slots at the start of the chunk; ``fade`` (B,H): their decay since; ``news`` (B,H,M,D):
    what was written since, before its projection; ``count`` (B,): steps of the chunk so far."""

    start: Tensor
    fade: Tensor
    news: Tensor
    count: Tensor

    @classmethod
    def fresh(cls, slots: Tensor) -> FrozenState:
        """Before the first step, from slots (B,H,M,D)."""
        count = torch.zeros(len(slots), dtype=torch.long, device=slots.device)
        return cls(slots.clone(), slots.new_ones(slots.shape[:2]), torch.zeros_like(slots), count)


def frozen_update(
    keys: Tensor,
    v: Tensor,
    gates: Tensor,
    fresh: Tensor,
    state: FrozenState | None = None,
    *,
    chunk: int = 16,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, FrozenState | None]:
    """As :func:`transduce.ops.orthogonal.orthogonal_update`, with slots held fixed in what makes it nonlinear.

    With s_i the slots at the start of the chunk, n_i = |s_i|, u_i = s_i / n_i, f the decay since, and z_i zero there::

        e   = v - sum_i k_i / n_i (f s_i + z_i)        f <- a f        z_i <- a z_i + r k_i / n_i e
        y   = sum_i q_i w_i / |w_i|  with  w_i = f s_i + (I - u_i u_i^T) z_i

    and w_i are the slots of the next chunk. A chunk is a triangular solve and products of matrices.

    Args:
        keys, v, gates, fresh, mask, resets: as for :func:`orthogonal_update`.
        state: to go on from; a row counts its own valid steps, so chunks lie where they would without any cuts,
            masks and neighbours. None computes the outputs of a fresh state and gives None back.
        chunk: steps between two updates of directions and norms; 1 is exact.

    Without state, mask and resets whole chunks are computed at once; otherwise step by step, with the same result.
    """
    check_slots("frozen_update", keys, v, gates, fresh, None)
    check_flags("frozen_update", v, mask, resets)
    if chunk < 1:
        raise ValueError(f"frozen_update needs a chunk of at least 1 step, got {chunk}")
    work = work_dtype(keys, v, gates, fresh)
    inputs = [zero_masked(x, mask).to(work) for x in (keys, v, gates)]
    slots = fresh.to(work).expand(len(v), -1, -1, -1)
    if state is None and mask is None and resets is None:
        return _by_chunks(*inputs, slots, chunk).to(v.dtype), None
    y, after = _by_steps(inputs, slots, FrozenState.fresh(slots) if state is None else state, chunk, (mask, resets))
    return y.to(v.dtype), None if state is None else after


def _by_steps(
    inputs: list[Tensor],
    fresh: Tensor,
    state: FrozenState,
    chunk: int,
    flags: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, FrozenState]:
    mask, resets = flags
    resets = cuts(resets, mask)
    s, f, z, count = state
    steps = inputs[0].shape[1]
    restarts = (None,) * steps if resets is None else resets.unbind(1)
    advances = (None,) * steps if mask is None else mask.unbind(1)
    outputs: list[Tensor] = []
    for key, value, gate, restart, advance in zip(*(x.unbind(1) for x in inputs), restarts, advances):
        (read, write), (rate, decay) = key.unbind(2), gate.unbind(2)
        if restart is not None:
            again = restart[:, None, None, None]
            s, z = torch.where(again, fresh, s), torch.where(again, 0, z)
            f, count = torch.where(restart[:, None], 1, f), torch.where(restart, 0, count)
        size = s.norm(dim=-1, keepdim=True).clamp_min(FLOOR)
        u, keep = s / size, torch.exp(decay)
        pull = write[..., None] / size
        error = value[..., None, :] - pull.mT @ (f[..., None, None] * s + z)
        f, z = keep * f, keep[..., None, None] * z + rate[..., None, None] * pull * error
        w = f[..., None, None] * s + z - (u * z).sum(-1, keepdim=True) * u
        outputs.append((read[..., None, :] @ (w / w.norm(dim=-1, keepdim=True).clamp_min(FLOOR))).squeeze(-2))
        count = count + (1 if advance is None else advance.long())
        full = count == chunk
        ends = full[:, None, None, None]
        s, z = torch.where(ends, w, s), torch.where(ends, 0, z)
        f, count = torch.where(full[:, None], 1, f), torch.where(full, 0, count)
    return torch.stack(outputs, 1), FrozenState(s, f, z, count)


def _by_chunks(keys: Tensor, v: Tensor, gates: Tensor, slots: Tensor, chunk: int) -> Tensor:
    batch, steps, work = len(v), v.shape[1], v.dtype
    whole = steps - steps % chunk
    outputs: list[Tensor] = []
    for part, size in ((slice(0, whole), chunk), (slice(whole, steps), steps - whole)):
        if part.start == part.stop:
            continue
        q, k, values, rate = (chunks(x[:, part], size) for x in (*keys.unbind(3), v, gates[..., 0]))
        decays = _decays(gates[:, part, :, 1], None, None, (batch, part.stop - part.start), size, work)
        for inputs in zip(*(x.unbind(2) for x in (q, k, values, rate, *decays))):
            y, slots = _one_chunk(*inputs[:4], inputs[4:], slots)
            outputs.append(y.transpose(1, 2))
    return torch.cat(outputs, 1) if outputs else torch.zeros_like(v)


def _one_chunk(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decays: tuple[Tensor, ...], s: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k (B,H,C,M), v (B,H,C,D), rate (B,H,C), slots (B,H,M,D) -> outputs (B,H,C,D) and the slots of the next chunk.

    The norms of w come without w itself: |w|^2 = f^2 n^2 + |z|^2 - (u . z)^2, and |z_t|^2 is a sum over pairs of
    steps of products of their errors.
    """
    within, incoming, outgoing, through = decays
    size = s.norm(dim=-1).clamp_min(FLOOR)  # (B,H,M)
    u = s / size[..., None]
    pull = k / size[..., None, :]
    gain = rate[..., None] * pull
    # Decays up to the step before: the error is taken before the memory fades.
    earlier = torch.cat((torch.zeros_like(within[..., :1, :]), within[..., :-1, :]), -2)
    before = torch.cat((torch.ones_like(incoming[..., :1]), incoming[..., :-1]), -1)
    right = v - before[..., None] * (k @ u)
    e = torch.linalg.solve_triangular((earlier * (pull @ gain.mT)).tril(-1), right, upper=False, unitriangular=True)
    along = within @ (gain * (e @ u.mT))  # u . z after each step
    pairs = within * (e @ e.mT)
    once = 2 * pairs.tril(-1) + torch.diag_embed(pairs.diagonal(dim1=-2, dim2=-1))
    news = within**2 @ (gain * (once @ gain))  # |z|^2
    start = incoming[..., None] * size[..., None, :]
    p = q / torch.sqrt((start**2 + news - along**2).clamp_min(FLOOR**2))
    y = (p * (start - along)) @ u + (within * (p @ gain.mT)) @ e
    z = (gain * outgoing[..., None]).mT @ e
    return y, through[..., None, None] * s + z - (u * z).sum(-1, keepdim=True) * u
