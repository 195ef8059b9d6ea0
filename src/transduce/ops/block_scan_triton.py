"""Triton kernel of :func:`transduce.ops.block_scan.block_scan`; its gradients are the same walk backwards.

A program owns a few blocks of one row and walks over time step by step with their states in registers. Imports triton;
import it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_parts import cuts


@triton.jit
def _walk(  # noqa: ANN001, ANN202 (triton's own signature)
    a, v, h0, out, mask, resets, steps, heads, to_row, to_column,
    back: tl.constexpr, added: tl.constexpr, masked: tl.constexpr, restarts: tl.constexpr,
    size: tl.constexpr, room: tl.constexpr, group: tl.constexpr,
):
    """out_t = A_t out_(t-1) + v_t; ``size`` numbers a block, in room for a power of two. ``back``: the recurrence of
    gradients, from the last step to the first with the transpose of A_(t+1), where v always counts."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * group + tl.arange(0, group)
    i, j = tl.arange(0, room), tl.arange(0, room)
    inside = (head < heads)[:, None] & (i < size)[None, :]
    square = inside[:, :, None] & (j < size)[None, None, :]
    entry = head[:, None] * size + i[None, :]
    a_entry = head[:, None, None] * (size * size) + i[None, :, None] * to_row + j[None, None, :] * to_column
    h = tl.load(h0 + row * heads * size + entry, mask=inside, other=0.0)
    for walked in range(0, steps):
        t = steps - 1 - walked if back else walked
        t_factor = tl.minimum(t + 1, steps - 1) if back else t
        factor = tl.load(a + (row * steps + t_factor) * heads * size * size + a_entry, mask=square, other=0.0)
        at = (row * steps + t) * heads * size + entry
        new = tl.load(v + at, mask=inside, other=0.0) if added else tl.zeros_like(h)
        passed = tl.sum(factor * h[:, None, :], 2)
        if back:  # nothing comes from behind the last step, whatever stands in the matrix that was read in its place
            passed = tl.where(walked == 0, 0.0, passed)
        if restarts:
            cut = tl.load(resets + row * steps + t_factor) != 0
            passed = tl.where(cut, 0.0, passed)
        if masked:
            counts = tl.load(mask + row * steps + t_factor) != 0
            passed = tl.where(counts, passed, h)
            new = new if back else tl.where(counts, new, 0.0)
        h = passed + new
        tl.store(out + at, h, mask=inside)


def _run(
    a: Tensor, v: Tensor | None, h0: Tensor, flags: tuple[Tensor | None, Tensor | None], *, back: bool = False
) -> Tensor:
    batch, steps, heads, size, _ = a.shape
    out = a.new_empty(a.shape[:4])
    if out.numel():
        room = triton.next_power_of_2(size)
        group = min(triton.next_power_of_2(heads), max(1, 1024 // room**2))
        marks = [cuts(f, h0) for f in flags]
        _walk[(batch, triton.cdiv(heads, group))](
            a, h0 if v is None else v, h0, out, *marks, steps, heads, *((1, size) if back else (size, 1)),
            back=back, added=v is not None, masked=flags[0] is not None, restarts=flags[1] is not None,
            size=size, room=room, group=group,
        )  # fmt: skip
    return out


def forward(a: Tensor, v: Tensor | None, h0: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """All arguments contiguous and of one dtype: (B,T,H,b,b), (B,T,H,b), (B,H,b), (B,T), (B,T)."""
    return _run(a, v, h0, (mask, resets))


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    flags: tuple[Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, v and h0 from ``saved`` = (a, h, h0) and ``flags`` = (mask, resets)."""
    a, h, h0 = saved
    mask, resets = flags
    if not h.numel():
        return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(h0)
    u = _run(a, grad, torch.zeros_like(h0), flags, back=True)
    into_first, passed, dv = (a[:, 0].mT @ u[:, 0, ..., None]).squeeze(-1), torch.cat((h0[:, None], h[:, :-1]), 1), u
    if resets is not None:
        passed = torch.where(resets[..., None, None], 0, passed)
        into_first = torch.where(resets[:, 0, None, None], 0, into_first)
    if mask is not None:
        dv = torch.where(mask[..., None, None], u, 0)
        into_first = torch.where(mask[:, 0, None, None], into_first, u[:, 0])
    return dv[..., :, None] * passed[..., None, :] if wanted[0] else a, dv, into_first
