"""Triton kernel of :func:`transduce.ops.softmax_scan`; its gradients are the walk of ``scan_triton``.

Imports triton; import it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .scan_triton import Walk
from .triton_parts import cuts, softmax_step, tile


@triton.jit
def _average(  # noqa: ANN001, ANN202 (triton's own signature)
    scores, vectors, peak, mass, total, y, peaks, masses, mask, resets, steps, heads, width,
    masked: tl.constexpr, restarts: tl.constexpr, span: tl.constexpr, block: tl.constexpr,
):
    """One line (row and head) and one block of its values: tiles of steps, each joined to the state before it. ``total`` is
    changed in place; the last peak and mass are those of the last step."""
    line = tl.program_id(0).to(tl.int64)
    row, head = line // heads, line % heads
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    w = tl.load(total + line * width + channel, mask=inside, other=0.0)
    m, u = tl.load(peak + line) + tl.zeros_like(w), tl.load(mass + line) + tl.zeros_like(w)
    for first in range(0, steps, span):
        t = first + tl.arange(0, span)
        valid = t < steps
        step = row * steps + t
        s = tl.load(scores + step * heads + head, mask=valid, other=float("-inf"))
        cut = tl.zeros([span], tl.int32)
        if restarts:
            cut = tl.load(resets + step, mask=valid, other=0).to(tl.int32)
        counts = valid
        if masked:
            counts = tl.load(mask + step, mask=valid, other=0) != 0
            s = tl.where(counts, s, float("-inf"))
        at = (step * heads + head)[:, None] * width + channel[None, :]
        here = valid[:, None] & inside[None, :]
        v = tl.load(vectors + at, mask=counts[:, None] & inside[None, :], other=0.0)
        ones = tl.zeros_like(v) + 1.0
        m_in, cuts = s[:, None] * ones, tl.broadcast_to(cut[:, None], [span, block])
        u_in = tl.where(m_in == float("-inf"), 0.0, ones)
        m_tile, u_tile, w_tile, past_cut = tl.associative_scan((m_in, u_in, v, cuts), 0, softmax_step)
        m_all, u_all, w_all, _ = softmax_step(
            m[None, :] * ones, u[None, :] * ones, w[None, :] * ones, tl.zeros_like(past_cut), m_tile, u_tile, w_tile, past_cut
        )
        tl.store(y + at, tl.where(u_all == 0.0, 0.0, w_all / tl.where(u_all == 0.0, 1.0, u_all)), mask=here)
        first_channel = here & (channel == 0)[None, :]
        scalar_at = (step * heads + head)[:, None] + tl.zeros_like(at)
        tl.store(peaks + scalar_at, m_all, mask=first_channel)
        tl.store(masses + scalar_at, u_all, mask=first_channel)
        last = (t == tl.minimum(first + span, steps) - 1)[:, None]
        m = tl.max(tl.where(last, m_all, float("-inf")), 0)
        u = tl.sum(tl.where(last, u_all, 0.0), 0)
        w = tl.sum(tl.where(last, w_all, 0.0), 0)
    tl.store(total + line * width + channel, w, mask=inside)


def forward(
    scores: Tensor, values: Tensor, start: Tensor, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All arguments contiguous and of one dtype. The averages, the last state, and m and u behind every step."""
    y, peaks, masses = torch.empty_like(values), torch.empty_like(scores), torch.empty_like(scores)
    if not values.numel():
        return y, start.clone(), peaks, masses
    batch, steps, heads, width = values.shape
    span, block = tile(steps, width)
    marks = [cuts(f, scores) for f in (mask, resets)]
    peak, mass, total = start[..., 0].contiguous(), start[..., 1].contiguous(), start[..., 2:].clone()
    total = total.contiguous()
    _average[(batch * heads, triton.cdiv(width, block))](
        scores, values, peak, mass, total, y, peaks, masses, *marks, steps, heads, width,
        masked=mask is not None, restarts=resets is not None, span=span, block=block,
    )  # fmt: skip
    return y, torch.cat((peaks[:, -1, :, None], masses[:, -1, :, None], total), -1), peaks, masses


def backward(
    grad: Tensor, grad_sums: Tensor, saved: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scores, values and the first state's (u, w), from those of the averages and of the last (u, w);
    ``saved``: scores, values, start, mask, resets, averages, m and u of every step. G and g of the op's equation are one
    walk back each, over a factor e^(m_t - m_(t+1)) a step and head."""
    scores, values, start, mask, resets, y, peaks, masses = saved
    if not values.numel():
        return torch.zeros_like(scores), torch.zeros_like(values), grad_sums
    before = torch.cat((start[:, None, :, 0], peaks[:, :-1]), 1)
    nothing = before == -torch.inf
    fade = torch.exp(torch.where(nothing, 0, before - peaks)).masked_fill(nothing, 0)
    weight = torch.exp(torch.where(scores == -torch.inf, scores, scores - peaks))
    inverse = torch.where(masses == 0, 0, 1 / masses)
    if resets is not None:
        fade = torch.where(resets[..., None], 0, fade)
    if mask is not None:
        steps = mask[..., None]
        fade, weight, inverse = torch.where(steps, fade, 1), torch.where(steps, weight, 0), torch.where(steps, inverse, 0)
        values = torch.where(steps[..., None], values, 0)
    into_mass, into_total = -(grad * y).sum(-1) * inverse, grad * inverse[..., None]
    into_mass[:, -1] += grad_sums[..., 0]
    into_total[:, -1] += grad_sums[..., 1:]
    g = Walk().gradients(fade[..., None, None], into_mass[..., None, None])[..., 0, 0]
    whole = Walk().gradients(fade[..., None, None], into_total[..., None])[..., 0]
    d_scores, d_values = weight * ((whole * values).sum(-1) + g), weight[..., None] * whole
    first = torch.cat((g[:, 0, :, None], whole[:, 0]), -1)
    return d_scores, d_values, fade[:, 0, :, None] * first
