"""Triton kernel of elementwise linear recurrences, for :func:`transduce.ops.linear_scan` and what stands on it.

One pass over the data: a program owns a block of channels of one line and walks over time in tiles; the steps of a tile
are joined in parallel and the last state of a tile is carried to the next one. Gradients are the same walk backwards.
Imports triton; import it lazily.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_parts import complex_step, cuts, real_step, tile


@triton.jit
def _scan(  # noqa: ANN001, ANN202 (triton's own signature)
    a, b, h0, out, mask, resets, steps, width, lines,
    a_row, a_line, a_step, a_channel, a_part, x_row, x_line, x_step, x_channel, x_part,
    h_row, h_line, h_channel, h_part,
    back: tl.constexpr, reverse: tl.constexpr, masked: tl.constexpr, restarts: tl.constexpr,
    imaginary: tl.constexpr, span: tl.constexpr, block: tl.constexpr,
):
    """out_t = f_t out_(t-1) + b_t with f_t = a_t, 0 at a reset, 1 where the mask says that the state is kept (b counts as
    zero there). ``back``: the recurrence of gradients, which walks the other way: the factor is the conjugate of that
    of the step before in this walk (0 at the first one), and b always counts."""
    row, line = (tl.program_id(0) // lines).to(tl.int64), tl.program_id(0) % lines
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    a_base = row * a_row + line * a_line + channel * a_channel
    x_base = row * x_row + line * x_line + channel * x_channel
    h_base = row * h_row + line * h_line + channel * h_channel
    h_real = tl.load(h0 + h_base, mask=inside, other=0.0)
    h_imag = tl.load(h0 + h_base + h_part, mask=inside, other=0.0) if imaginary else h_real
    for first in range(0, steps, span):
        walked = (first + tl.arange(0, span)).to(tl.int64)
        t = steps - 1 - walked if reverse else walked
        t_factor = t + (1 if reverse else -1) if back else t
        known = (walked > 0) & (walked < steps) if back else walked < steps
        here, has_factor = (walked < steps)[:, None] & inside[None, :], known[:, None] & inside[None, :]
        a_at, x_at = a_base[None, :] + t_factor[:, None] * a_step, x_base[None, :] + t[:, None] * x_step
        a_real = tl.load(a + a_at, mask=has_factor, other=0.0)
        b_real = tl.load(b + x_at, mask=here, other=0.0)
        cut = tl.zeros([span], tl.int32)
        if restarts:
            cut = tl.load(resets + row * steps + t_factor, mask=known, other=0).to(tl.int32)
        if imaginary:
            a_imag = tl.load(a + a_at + a_part, mask=has_factor, other=0.0)
            a_imag = -a_imag if back else a_imag
            b_imag = tl.load(b + x_at + x_part, mask=here, other=0.0)
        if masked:
            flags = tl.load(mask + row * steps + t_factor, mask=known, other=1) != 0
            cut, counts = tl.where(flags, cut, 0), flags[:, None]
            a_real = tl.where(counts, a_real, 1.0)
            b_real = b_real if back else tl.where(counts, b_real, 0.0)
            if imaginary:
                a_imag = tl.where(counts, a_imag, 0.0)
                b_imag = b_imag if back else tl.where(counts, b_imag, 0.0)
        cuts = tl.broadcast_to(cut[:, None], [span, block])
        if imaginary:
            f_real, f_imag, s_real, s_imag, past_cut = tl.associative_scan(
                (a_real, a_imag, b_real, b_imag, cuts), 0, complex_step
            )
            passed_real = f_real * h_real[None, :] - f_imag * h_imag[None, :]
            passed_imag = f_real * h_imag[None, :] + f_imag * h_real[None, :]
            imag = tl.where(past_cut == 0, passed_imag + s_imag, s_imag)
            tl.store(out + x_at + x_part, imag, mask=here)
        else:
            f, s_real, past_cut = tl.associative_scan((a_real, b_real, cuts), 0, real_step)
            passed_real = f * h_real[None, :]
        real = tl.where(past_cut == 0, passed_real + s_real, s_real)
        tl.store(out + x_at, real, mask=here)
        last = (walked == tl.minimum(first + span, steps) - 1)[:, None]
        h_real = tl.sum(tl.where(last, real, 0.0), 0)
        h_imag = tl.sum(tl.where(last, imag, 0.0), 0) if imaginary else h_real


@dataclass(frozen=True)
class Walk:
    """A recurrence over (B,T,L,D,P) tensors: L lines of D channels a row, P = 1 or 2 (real and imaginary parts, in any
    place of memory). ``mask`` and ``resets``: (B,T) bool or None."""

    reverse: bool = False
    mask: Tensor | None = None
    resets: Tensor | None = None

    def __call__(self, a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        """The states of all steps, from h0 (B,L,D,P)."""
        return self._walk(a, b, h0, self.reverse, False)

    def gradients(self, a: Tensor, grad: Tensor) -> Tensor:
        """u_t = grad_t + conj(f_(t+1)) u_(t+1), from zero behind the last step."""
        return self._walk(a, grad, torch.zeros_like(grad[:, 0]), not self.reverse, True)

    def _walk(self, a: Tensor, b: Tensor, h0: Tensor, reverse: bool, back: bool) -> Tensor:
        out = torch.empty_strided(b.shape, b.stride(), dtype=b.dtype, device=b.device)
        batch, steps, lines, width, parts = b.shape
        if not out.numel():
            return out
        span, block = tile(steps, width)
        a = a.expand(b.shape)
        marks = [cuts(flags, b) for flags in (self.mask, self.resets)]
        strides = [*_strides(a), *_strides(b), h0.stride(0), *h0.stride()[1:]]
        _scan[(batch * lines, triton.cdiv(width, block))](
            a, b, h0, out, *marks, steps, width, lines, *strides,
            back=back, reverse=reverse, masked=self.mask is not None, restarts=self.resets is not None,
            imaginary=parts == 2, span=span, block=block,
        )  # fmt: skip
        return out


def _strides(x: Tensor) -> list[int]:
    """Of a row, a line, a step, a channel and a part."""
    row, step, line, channel, part = x.stride()
    return [row, line, step, channel, part]


def _planes(x: Tensor) -> Tensor:
    """(..., D) real or complex as (..., 1, D, P)."""
    return (torch.view_as_real(x) if x.is_complex() else x[..., None]).unsqueeze(-3)


def forward(a: Tensor, b: Tensor, h0: Tensor, resets: Tensor | None, reverse: bool) -> Tensor:
    """All arguments contiguous, of one dtype and full shape: (B,T,D), (B,T,D), (B,D), (B,T)."""
    return _numbers(Walk(reverse, resets=resets)(_planes(a), _planes(b), _planes(h0)), b)


def backward(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor], resets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0 from ``saved`` = (a, h, h0): db = u, da_t = u_t conj(h_(t-1)), dh0 = conj(a_1) u_1."""
    a, h, h0 = saved
    if not h.shape[1]:
        return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(h0)
    u = _numbers(Walk(reverse, resets=resets).gradients(_planes(a), _planes(grad)), grad)
    before = torch.cat((h[:, 1:], h0[:, None]), 1) if reverse else torch.cat((h0[:, None], h[:, :-1]), 1)
    da, first = u * before.conj(), -1 if reverse else 0
    dh0 = u[:, first] * a[:, first].conj()
    if resets is not None:
        da = torch.where(resets[..., None], 0, da)
        dh0 = torch.where(resets[:, first, None], 0, dh0)
    return da, u, dh0


def _numbers(planes: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_planes`."""
    planes = planes.squeeze(-3)
    return torch.view_as_complex(planes) if like.is_complex() else planes.squeeze(-1)
