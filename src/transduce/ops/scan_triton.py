"""Triton kernels of :func:`transduce.ops.linear_scan`: one pass over the data, forward and backward.

Imports triton; import it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_parts import complex_step, cuts, planes, real_step, tile


@triton.jit
def _scan(  # noqa: ANN001, ANN202
    a, b, h0, out, resets, steps, width,
    later: tl.constexpr, reverse: tl.constexpr, restarts: tl.constexpr, imaginary: tl.constexpr,
    span: tl.constexpr, block: tl.constexpr,
):
    """out_t = a_t out_(t-1) + b_t from h0. ``later``: the factor of step t is the conjugate of a where the walk was one
    step before, zero at its first step (the recurrence of gradients, which walks the other way)."""
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    parts: tl.constexpr = 2 if imaginary else 1
    h_real = tl.load(h0 + (row * width + channel) * parts, mask=inside, other=0.0)
    h_imag = tl.load(h0 + (row * width + channel) * parts + 1, mask=inside, other=0.0) if imaginary else h_real
    for first in range(0, steps, span):
        walked = first + tl.arange(0, span)
        t = steps - 1 - walked if reverse else walked
        here = (walked < steps)[:, None] & inside[None, :]
        at = ((row * steps + t)[:, None] * width + channel[None, :]) * parts
        from_t = t + (1 if reverse else -1) if later else t
        known = (walked > 0) & (walked < steps) if later else walked < steps
        factor_at = ((row * steps + from_t)[:, None] * width + channel[None, :]) * parts
        has_factor = known[:, None] & inside[None, :]
        a_real = tl.load(a + factor_at, mask=has_factor, other=0.0)
        b_real = tl.load(b + at, mask=here, other=0.0)
        if restarts:
            cut = tl.load(resets + row * steps + from_t, mask=known, other=0).to(tl.int32)
        else:
            cut = tl.zeros([span], tl.int32)
        cut = tl.broadcast_to(cut[:, None], [span, block])
        if imaginary:
            a_imag = tl.load(a + factor_at + 1, mask=has_factor, other=0.0)
            a_imag = -a_imag if later else a_imag
            b_imag = tl.load(b + at + 1, mask=here, other=0.0)
            g_real, g_imag, s_real, s_imag, seen = tl.associative_scan(
                (a_real, a_imag, b_real, b_imag, cut), 0, complex_step
            )
            real = tl.where(seen == 0, g_real * h_real[None, :] - g_imag * h_imag[None, :] + s_real, s_real)
            imag = tl.where(seen == 0, g_real * h_imag[None, :] + g_imag * h_real[None, :] + s_imag, s_imag)
            tl.store(out + at + 1, imag, mask=here)
        else:
            g, s, seen = tl.associative_scan((a_real, b_real, cut), 0, real_step)
            real = tl.where(seen == 0, g * h_real[None, :] + s, s)
            imag = real
        tl.store(out + at, real, mask=here)
        last = (walked == tl.minimum(first + span, steps) - 1)[:, None]
        h_real = tl.sum(tl.where(last, real, 0.0), 0)
        h_imag = tl.sum(tl.where(last, imag, 0.0), 0)


def _walk(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool, later: bool) -> Tensor:
    out = torch.empty_like(b)
    batch, steps, width = b.shape
    if out.numel():
        span, block = tile(steps, width)
        grid = batch, triton.cdiv(width, block)
        flags = {"later": later, "reverse": reverse, "restarts": resets is not None, "imaginary": b.is_complex()}
        marks = cuts(resets, planes(b))
        tensors = [planes(x) for x in (a, b, h0, out)]
        _scan[grid](*tensors, marks, steps, width, **flags, span=span, block=block)
    return out


def forward(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    """All arguments contiguous, of one dtype and full shape: (B,T,D), (B,T,D), (B,D), (B,T)."""
    return _walk(a, b, h0, resets, reverse, False)


def backward(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor], resets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0 from ``saved`` = (a, h, h0): u_t = grad_t + conj(a_(t+1)) u_(t+1), db = u,
    da_t = u_t conj(h_(t-1)), dh0 = conj(a_1) u_1."""
    a, h, h0 = saved
    u = _walk(a, grad, torch.zeros_like(h0), resets, not reverse, True)
    if not h.shape[1]:
        return torch.zeros_like(a), u, torch.zeros_like(h0)
    before = torch.cat((h[:, 1:], h0[:, None]), 1) if reverse else torch.cat((h0[:, None], h[:, :-1]), 1)
    da, first = u * before.conj(), -1 if reverse else 0
    dh0 = u[:, first] * a[:, first].conj()
    if resets is not None:
        da = torch.where(resets[..., None], 0, da)
        dh0 = torch.where(resets[:, first, None], 0, dh0)
    return da, u, dh0
