"""Stacks of dilated convolutions in narrow residual blocks, causal or centred (Kalchbrenner et al. 2016)."""

from __future__ import annotations

from functools import partial
from typing import Callable, Literal, Sequence

import torch
from torch import Tensor, nn

from transduce.core.errors import UserError
from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.conv import causal_conv

from .combine import Pointwise, Residual, Serial
from .convolution import CausalConv, DilatedConv, _parameters
from .masking import only_pads_right
from .norm import LayerNorm

DILATIONS = (1, 2, 4, 8, 16)
"""Kalchbrenner et al. 2016, section 3.6: one set; sets are repeated."""


class MultiplicativeUnit(Mixer):
    """y = g_1 * tanh(g_2 * x + g_3 * u): three gates and an update, each a dilated causal convolution of x.

    ``[g_1, g_2, g_3] = sigmoid(W * x + b)`` and ``u = tanh(V * x + c)``, with k taps ``dilation`` steps
    apart. All four are one convolution, (B,T,D) -> (B,T,4D); the state is the last (k-1) * dilation inputs
    (B,L,D). Kalchbrenner et al. 2016 (arXiv 1610.10099), section 3.6, after their Video Pixel Networks
    (arXiv 1610.00527, section 4.1). Raises ValueError for a kernel or dilation below 1.
    """

    def __init__(self, dim: int, kernel: int = 3, dilation: int = 1) -> None:
        super().__init__()
        if dilation < 1:
            raise ValueError(f"dilation is at least 1, got {dilation}")
        self.dim, self.kernel, self.dilation = dim, kernel, dilation
        four = [_parameters(dim, kernel, depthwise=False) for _ in range(4)]
        self.weight, self.bias = (nn.Parameter(torch.cat([p.data for p in same])) for same in zip(*four))

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        return self.weight.new_zeros(batch, (self.kernel - 1) * self.dilation, self.dim)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if mask is not None:
            x = zero_masked(x, mask)
            if state is None and only_pads_right(mask):
                # What stands left of the padding never reads it, so the dense kernel serves.
                mask, resets = None, None if resets is None else resets & mask
        y, tail = causal_conv(
            x, self.weight, self.bias, state, dilation=self.dilation, mask=mask, resets=resets
        )
        *gates, update = y.chunk(4, -1)
        out, keep, take = (torch.sigmoid(g) for g in gates)
        return out * torch.tanh(keep * x + take * torch.tanh(update)), None if state is None else tail


def narrow_block(width: int, inner: int, mixer: Mixer, *, dropout: float = 0.0) -> Mixer:
    """x + leave(mixer(enter(x))): normalised, narrowed to ``inner``, mixed over time, widened again.

    enter = LN, ReLU, ``width -> inner``, LN, ReLU; leave = LN, ReLU, ``inner -> width``. Every norm is over
    the channels of one step: a norm over time would let a causal stack see the future. Kalchbrenner et al.
    2016, figure 3, left. ``mixer``: (B,T,inner) -> (B,T,inner).
    """
    enter = nn.Sequential(LayerNorm(width), nn.ReLU(), nn.Linear(width, inner), LayerNorm(inner), nn.ReLU())
    leave = nn.Sequential(LayerNorm(inner), nn.ReLU(), nn.Linear(inner, width))
    return Residual(Serial(Pointwise(enter), mixer, Pointwise(leave)), dropout=dropout)


def dilated_stack(
    width: int,
    *,
    causal: bool,
    kernel: int = 3,
    dilations: Sequence[int] = DILATIONS,
    sets: int = 1,
    unit: Literal["relu", "multiplicative"] = "relu",
    dropout: float = 0.0,
) -> Serial:
    """``sets * len(dilations)`` narrow blocks of residual ``width``, their inside half as wide.

    ``causal``: output t reads inputs up to t and the stack steps in constant time and memory; otherwise the
    taps are centred. ``unit``: "relu", the block for translation, or "multiplicative", the block with
    gated units, which is causal. Raises :class:`UserError` for an odd width, no block, a kernel or dilation
    below 1, or a centred multiplicative stack.
    """
    if width % 2 or width < 2:
        raise UserError(
            f"width must be an even number above 0, since blocks are half as wide inside; got {width}."
        )
    if sets < 1 or not dilations or min(dilations) < 1:
        raise UserError(
            f"sets and every dilation must be at least 1, got {sets} sets of {list(dilations)}."
        )
    if kernel < 1:
        raise UserError(f"kernel must be at least 1, got {kernel}.")
    if not causal and unit == "multiplicative":
        raise UserError('A centred stack has unit="relu"; multiplicative units are causal.')
    inner = width // 2
    convolution = partial(CausalConv if causal else DilatedConv, inner, depthwise=False)
    make: Callable[..., Mixer] = (
        partial(MultiplicativeUnit, inner) if unit == "multiplicative" else convolution
    )
    return Serial(
        *(
            narrow_block(width, inner, make(kernel=kernel, dilation=d), dropout=dropout)
            for _ in range(sets)
            for d in dilations
        )
    )


def receptive_field(kernel: int, dilations: Sequence[int], sets: int = 1) -> int:
    """Steps that one output of the stack reads, itself included: 1 + (kernel - 1) * sets * sum(dilations)."""
    return 1 + (kernel - 1) * sets * sum(dilations)
