"""Convolutions over time as mixers."""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.nn.masking import only_pads_right
from transduce.ops.conv import causal_conv, centred_conv


def _parameters(dim: int, kernel: int, depthwise: bool) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight (D,k) or (D,D,k) and bias (D,), uniform within 1/sqrt(number of inputs of one output)."""
    if kernel < 1:
        raise ValueError(f"a kernel has at least one tap, got {kernel}")
    shape = (dim, kernel) if depthwise else (dim, dim, kernel)
    bound = 1 / math.sqrt(kernel if depthwise else dim * kernel)
    return tuple(nn.Parameter(torch.empty(s).uniform_(-bound, bound)) for s in (shape, (dim,)))


class CausalConv(Mixer):
    """y_t = phi(b + sum_{j<k} w_j x_{t - (k-1-j) dilation}), with w_j a vector (depthwise) or a matrix.

    The state is the last (k-1) * dilation inputs (B,L,D). A step sees ``kernel`` valid steps of its row,
    itself included. Dilation: van den Oord et al. 2016 (arXiv 1609.03499, section 2.1).

    Args:
        dim: width of inputs and outputs.
        kernel: number of taps k.
        dilation: steps between taps.
        depthwise: each channel on its own; otherwise every output reads every channel.
        activation: phi, position-wise, or None.
    """

    def __init__(
        self,
        dim: int,
        kernel: int = 4,
        dilation: int = 1,
        depthwise: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if dilation < 1:
            raise ValueError(f"dilation is at least 1, got {dilation}")
        self.dim, self.kernel, self.dilation, self.activation = dim, kernel, dilation, activation
        self.weight, self.bias = _parameters(dim, kernel, depthwise)

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        return self.weight.new_zeros(batch, (self.kernel - 1) * self.dilation, self.dim)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if (
            state is None
            and mask is not None
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            # Padding on the right is read by nothing but padding, so the dense kernel does.
            if only_pads_right(mask):
                x = zero_masked(x, mask)
                mask, resets = None, None if resets is None else resets & mask
        y, tail = causal_conv(
            x, self.weight, self.bias, state, dilation=self.dilation, mask=mask, resets=resets
        )
        if self.activation is not None:
            y = self.activation(y)
        return y, None if state is None else tail


class DilatedConv(Mixer):
    """y_t = phi(b + sum_{j<k} w_j x_{t + (j - (k-1)//2) dilation}): centred, so it reads ahead and keeps no
    state.

    ``lookahead`` is k//2 * dilation. Arguments as for :class:`CausalConv`.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        kernel: int = 3,
        dilation: int = 1,
        depthwise: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if dilation < 1:
            raise ValueError(f"dilation is at least 1, got {dilation}")
        self.dilation, self.activation = dilation, activation
        self.lookahead = kernel // 2 * dilation
        self.weight, self.bias = _parameters(dim, kernel, depthwise)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        raise ValueError(
            "a centred convolution has no state; use CausalConv where steps must be taken one by one"
        )

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is not None:
            raise ValueError("a centred convolution cannot continue a state; call it with the whole sequence")
        if mask is not None and resets is None and only_pads_right(mask):
            # Behind the end of a row the kernel finds zeros, whether they are padding or not there at all.
            x, mask = zero_masked(x, mask), None
        y = centred_conv(x, self.weight, self.bias, dilation=self.dilation, mask=mask, resets=resets)
        return y if self.activation is None else self.activation(y), None
