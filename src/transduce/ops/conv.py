"""Convolution over time that can be continued: the inputs that later outputs still need are handed on as a
tail."""

from __future__ import annotations

from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.core.seq import zero_masked
from transduce.ops.dispatch import Case, op
from transduce.ops.tracing import why_not_kernel


@op
def causal_conv(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail_BLD: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_{j<k} w_j x_{t - (k-1-j) dilation}, and the last L = (k-1) dilation inputs of each
    row.

    weight: (D,k) depthwise, or (E,D,k) full, taps in the order of ``torch.nn.Conv1d`` (the last one sees the
    current step). tail_BLD: the L inputs before the first step, zeros where None.
    mask: (B,T); a masked step is skipped: it enters neither outputs nor tail, and its own output is
    unspecified. resets: (B,T); taps never reach back across a reset, whose step is the first of a new
    history. A reset at a masked step is ignored.

    Returns y (B,T,D or E) and the tail (B,L,D), in which inputs before the last reset are zero.
    """
    steps = x_BTD.shape[1]
    reach = (weight.shape[-1] - 1) * dilation
    x_BTD = zero_masked(x_BTD, mask)
    places = None if mask is None else mask.long().cumsum(1) - 1
    if mask is not None:
        x_BTD = _pack(x_BTD, mask, places)
        resets = None if resets is None else _pack(resets, mask, places)
    z = torch.cat((_tail_or_zeros(tail_BLD, x_BTD, reach), x_BTD), 1)
    history = None
    if resets is not None:
        history = F.pad(resets.long().cumsum(1), (reach, 0))
    y = _convolve(z, history, None if history is None else history[:, reach:], weight, bias, dilation)
    if mask is None:
        tail, tail_history = z[:, steps:], None if history is None else history[:, steps:]
    else:
        y = y.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, y.shape[2]))
        recent = mask.sum(1)[:, None] + torch.arange(reach, device=z.device)
        tail = z.gather(1, recent[..., None].expand(-1, -1, z.shape[2]))
        tail_history = None if history is None else history.gather(1, recent)
    if tail_history is not None:
        # Stretches are numbered upwards, so the largest number is the one the row ends in.
        tail = zero_masked(tail, tail_history == history.amax(1, keepdim=True))
    return y, tail


def _numba_refuses(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail_BLD: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> str | None:
    if mask is not None or resets is not None:
        return "a mask or resets skip steps, which a dense convolution cannot"
    if weight.dim() != 2 or weight.shape[1] > 8:
        return "the kernel is for at most 8 taps of single channels"
    given = [t for t in (x_BTD, weight, bias, tail_BLD) if t is not None]
    reason = why_not_kernel(*given)
    if reason is not None:
        return reason
    if x_BTD.dtype not in (torch.float32, torch.float64) or any(t.dtype != x_BTD.dtype for t in given):
        return "the kernel takes tensors of one dtype, float32 or float64"
    if not x_BTD.numel():
        return "there is nothing to compute"
    return None


@causal_conv.backend("numba", when=_numba_refuses)
def causal_conv_numba(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail_BLD: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One compiled pass forward and one backward; to be differentiated once."""
    from transduce.ops.conv_numba import DepthwiseConv

    reach = (weight.shape[-1] - 1) * dilation
    tail = _tail_or_zeros(tail_BLD, x_BTD, reach)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    y = DepthwiseConv.apply(*(t.contiguous() for t in (x_BTD, weight.mT, bias, tail)), dilation)
    steps = x_BTD.shape[1]
    return y, x_BTD[:, steps - reach :].clone() if steps >= reach else torch.cat((tail[:, steps:], x_BTD), 1)


def _conv1d_refuses(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail_BLD: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> str | None:
    if mask is not None or resets is not None:
        return "a mask or resets skip steps, which a dense convolution cannot"
    few_taps = weight.dim() == 2 and weight.shape[1] <= 8
    if few_taps and x_BTD.device.type == "cpu" and torch.is_grad_enabled():
        return "on CPU torch's backward of a short depthwise convolution is slower than going tap by tap"
    return None


@causal_conv.backend("conv1d", when=_conv1d_refuses)
def causal_conv_conv1d(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail_BLD: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's convolution over the tail and the chunk laid end to end."""
    reach = (weight.shape[-1] - 1) * dilation
    z = torch.cat((_tail_or_zeros(tail_BLD, x_BTD, reach), x_BTD), 1)
    depthwise = weight.dim() == 2
    y = F.conv1d(
        z.transpose(1, 2),
        weight[:, None] if depthwise else weight,
        bias,
        dilation=dilation,
        groups=weight.shape[0] if depthwise else 1,
    )
    return y.transpose(1, 2), z[:, x_BTD.shape[1] :]


def _tail_or_zeros(tail_BLD: Tensor | None, x_BTD: Tensor, reach: int) -> Tensor:
    if tail_BLD is None:
        return x_BTD.new_zeros(x_BTD.shape[0], reach, x_BTD.shape[2])
    if tail_BLD.shape[1] != reach:
        raise ValueError(f"this convolution needs a tail of {reach} inputs, got {tail_BLD.shape[1]}")
    return tail_BLD


def _pack(x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """The valid steps of each row moved to the front, zeros behind them: (B,T,...) -> (B,T,...)"""
    steps = x.shape[1]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    room = x.new_zeros(x.shape[0], steps + 1, *x.shape[2:])
    return room.index_put((rows, torch.where(mask, places, steps)), x)[:, :steps]


def _convolve(
    z: Tensor, history: Tensor | None, now: Tensor | None, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    """Tap by tap over z (B,L+T,D). ``history`` (B,L+T) numbers the stretches between resets, ``now`` (B,T)
    those of the outputs; a tap into another stretch reads zero."""
    kernel = weight.shape[-1]
    steps = z.shape[1] - (kernel - 1) * dilation
    y = bias if bias is not None else z.new_zeros(())
    for j in range(kernel):
        seen = z[:, j * dilation : j * dilation + steps]
        if history is not None:
            seen = zero_masked(seen, history[:, j * dilation : j * dilation + steps] == now)
        y = y + (seen * weight[:, j] if weight.dim() == 2 else F.linear(seen, weight[..., j]))
    return y


def centred_conv(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """y_t = bias + sum_{j<k} w_j x_{t + (j - (k-1)//2) dilation}: as many taps into the future as into the
    past.

    Arguments as for :func:`causal_conv`; an even kernel has one more tap in the future. Masked steps are
    skipped, and taps cross no reset in either direction.
    """
    reach = (weight.shape[-1] - 1) * dilation
    before = (weight.shape[-1] - 1) // 2 * dilation
    if mask is None and resets is None:
        z = F.pad(x_BTD, (0, 0, before, reach - before))
        return causal_conv(z[:, reach:], weight, bias, z[:, :reach], dilation=dilation)[0]
    x_BTD = zero_masked(x_BTD, mask)
    places = None
    if mask is not None:
        places = mask.long().cumsum(1) - 1
        x_BTD = _pack(x_BTD, mask, places)
        resets = None if resets is None else _pack(resets, mask, places)
    z = F.pad(x_BTD, (0, 0, before, reach - before))
    now = None if resets is None else resets.long().cumsum(1)
    # Beyond both ends lie zeros, which may count as any stretch.
    history = None if now is None else F.pad(now, (before, reach - before))
    y = _convolve(z, history, now, weight, bias, dilation)
    return y if places is None else y.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, y.shape[2]))


@causal_conv.cases
def causal_conv_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def flags(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < share

    def arguments(weight: Tensor, batch: int, steps: int, reach: int) -> tuple[Tensor, ...]:
        width = weight.shape[0] if weight.dim() == 2 else weight.shape[1]
        return normal(batch, steps, width), weight, normal(weight.shape[0]), normal(batch, reach, width)

    everything = (0, 1, 2, 3)
    both = {"mask": flags(0.6, 3, 7), "resets": flags(0.3, 3, 7)}
    yield Case("tiny", arguments(normal(2, 3), 2, 4, 2), grad=everything, tiny=True)
    yield Case("tiny, masked and reset", arguments(normal(2, 3), 3, 7, 2), both, grad=everything, tiny=True)
    yield Case("depthwise", arguments(normal(6, 4), 2, 11, 3), grad=everything)
    yield Case("depthwise, many taps", arguments(normal(6, 9), 2, 11, 8), grad=everything)
    yield Case("full", arguments(normal(5, 6, 4), 2, 11, 3), grad=everything)
    yield Case("dilated", arguments(normal(6, 3), 2, 11, 8), {"dilation": 4}, grad=everything)
    yield Case("shorter than its kernel", arguments(normal(6, 4), 2, 1, 3), grad=everything)
    yield Case("kernel of one", arguments(normal(4, 6, 1), 2, 5, 0), grad=(0, 1, 2))
    yield Case("no tail, no bias", (normal(2, 9, 6), normal(6, 4)), grad=(0, 1))
    x, weight, bias, tail = arguments(normal(5, 6, 3), 3, 7, 4)
    poisoned = x.masked_fill(~both["mask"][..., None], float("nan"))
    yield Case("NaN under the mask", (poisoned, weight, bias, tail), {"dilation": 2, **both}, grad=(1, 2, 3))
    yield Case("resets", arguments(normal(6, 4), 3, 7, 3), {"resets": both["resets"]}, grad=everything)
    yield Case("mask", arguments(normal(6, 4), 3, 7, 3), {"mask": both["mask"]}, grad=everything)
