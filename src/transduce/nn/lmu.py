"""Legendre memory units: a sliding window of a signal as coefficients of polynomials, and the blocks around them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.hippo import delay, discretize
from transduce.ops.lti import lti

from .combine import Pointwise, Residual, Serial
from .convolution import CausalConv
from .spiking import LIF, BatchNorm


def rectifier(width: int) -> Mixer:
    """ReLU as a mixer."""
    return Pointwise(nn.ReLU())


def spiking(width: int, *, tau: float = 2.0) -> Mixer:
    """Currents made even by a :class:`BatchNorm`, then neurons that spike (:class:`LIF`).

    A membrane takes up 1 / tau of its current, so currents start at a deviation of tau: at 1 only those of two deviations
    would reach the threshold in a step, and with one neuron in twenty firing little is passed on.
    """
    return Serial(BatchNorm(width, gain=tau), LIF(width, tau=tau))


@dataclass(frozen=True)
class LMUState:
    """``memory`` (B,drives,N), float32 or better, and the states of the activations."""

    memory: Tensor
    drive: State
    read: State
    output: State


class LMU(Mixer):
    """The parallel Legendre memory unit (Chilkuri and Eliasmith 2021, arXiv 2102.11417, section 3)::

        u_t = f(w x_t + b),   m_t = A m_{t-1} + B u_t,   y_t = f(W [g(m_t); x_t] + c)

    A and B are the delay line over the last ``window`` steps (:func:`transduce.ops.hippo.delay`), made discrete by
    "zoh" and fixed: m holds ``memory`` Legendre coefficients of each of the ``drives`` signals u. (B,T,dim) ->
    (B,T,dim). State: :class:`LMUState`. Nothing nonlinear stands between two steps of m, so training is parallel.

    Args:
        dim: width of inputs and outputs.
        memory: coefficients of a window.
        window: length of the window in steps.
        drives: signals that are remembered.
        activation: makes f for a width, as a mixer; :func:`rectifier` or :func:`spiking`.
        read: makes g for the width drives * memory; None reads m as it is.
    """

    def __init__(
        self,
        dim: int,
        *,
        memory: int = 64,
        window: float = 128.0,
        drives: int = 1,
        activation: Callable[[int], Mixer] = rectifier,
        read: Callable[[int], Mixer] | None = None,
    ) -> None:
        super().__init__()
        if window < 1 or memory < 1:
            raise ValueError(f"an LMU needs a window and a memory of at least 1, got {window} and {memory}")
        self.memory, self.window, self.drives = memory, window, drives
        a, b = discretize(*delay(memory, window), torch.ones(1, dtype=torch.float64), "zoh")
        self.register_buffer("transition", a, persistent=False)
        self.register_buffer("writing", b, persistent=False)
        self.drive, self.drive_activation = nn.Linear(dim, drives), activation(drives)
        self.read = Pointwise(nn.Identity()) if read is None else read(drives * memory)
        self.output, self.output_activation = nn.Linear(drives * memory + dim, dim), activation(dim)

    def _parts(self) -> tuple[Mixer, Mixer, Mixer]:
        return self.drive_activation, self.read, self.output_activation

    def init_state(self, batch: int, *, capacity: int | None = None) -> LMUState:
        like = self.drive.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        memory = like.new_zeros(batch, self.drives, self.memory, dtype=dtype)
        return LMUState(memory, *(part.init_state(batch) for part in self._parts()))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, marks = zero_masked(x, mask), {"mask": mask, "resets": resets}
        before = LMUState(None, None, None, None) if state is None else state
        u, drive = self.drive_activation(self.drive(x), before.drive, **marks)
        work = torch.promote_types(x.dtype, torch.float32)
        a, b = self.transition.to(work), self.writing.to(work)
        m, memory = lti(a, b, None, u, before.memory, **marks, final=state is not None)
        m, read = self.read(m.flatten(2), before.read, **marks)
        y, output = self.output_activation(self.output(torch.cat((m, x), -1)), before.output, **marks)
        return y, None if state is None else LMUState(memory, drive, read, output)

    def extra_repr(self) -> str:
        return f"memory={self.memory}, window={self.window:g}, drives={self.drives}"


def lmuformer_block(
    dim: int, *, memory: int = 64, window: float = 128.0, drives: int = 1, expansion: int = 4
) -> Mixer:
    """x <- x + BN(W LMU(x)), x <- x + BN(W_2 gelu(BN(W_1 x))): (B,T,dim) -> (B,T,dim), causal in evaluation.

    Liu et al. 2024 (arXiv 2402.04882, section 3.2); a convolution of one tap is a linear map of each step. W_1 is
    ``expansion`` times as wide. See :class:`BatchNorm` for what its statistics see while training.
    """
    unit = LMU(dim, memory=memory, window=window, drives=drives)
    wide = expansion * dim
    channels = [_linear(dim, wide), BatchNorm(wide), Pointwise(nn.GELU()), _linear(wide, dim), BatchNorm(dim)]
    return Serial(Residual(Serial(unit, _linear(dim, dim), BatchNorm(dim))), Residual(Serial(*channels)))


def spiking_lmuformer_block(
    dim: int,
    *,
    memory: int = 64,
    window: float = 128.0,
    drives: int = 1,
    expansion: int = 4,
    tau: float = 2.0,
) -> Mixer:
    """The block of :func:`lmuformer_block` in which every linear map and the memory read spikes.

    x <- x + BN(W L(s(x))), x <- x + BN(W_2 s(BN(W_1 s(x)))), where s are :class:`LIF` neurons whose time is the sequence
    and L is the LMU with spiking u, m and output. What is added up over the depth are membrane currents (the
    membrane shortcut of Liu et al. 2024, section 3.3), so no layer sums spikes. Steps one by one and the whole
    sequence at once are the same function, spikes and norms of u and m included.
    """
    fire = partial(spiking, tau=tau)
    unit = LMU(dim, memory=memory, window=window, drives=drives, activation=fire, read=fire)
    wide = expansion * dim
    mixing = Serial(LIF(dim, tau=tau), unit, _linear(dim, dim), BatchNorm(dim, gain=tau))
    channels = [LIF(dim, tau=tau), _linear(dim, wide), fire(wide), _linear(wide, dim), BatchNorm(dim, gain=tau)]
    return Serial(Residual(mixing), Residual(Serial(*channels)))


def patch_embedding(dim: int, layers: int = 4, *, kernel: int = 3, spiking: bool = False, tau: float = 2.0) -> Mixer:
    """``layers`` times causal convolution, BN and activation, the last one as a residual: (B,T,dim) -> (B,T,dim).

    The front of LMUFormer, with padding on the left only: the published one pads both sides, so it reads ``layers``
    steps ahead and cannot stream. With ``spiking`` the neurons stand in front of the convolutions, the first of which
    reads x itself, and what comes out is a current.
    """
    parts: list[Mixer] = []
    for i in range(layers):
        step = [CausalConv(dim, kernel, depthwise=False), BatchNorm(dim, gain=tau if spiking else 1.0)]
        if not spiking:
            step.append(Pointwise(nn.GELU()))
        elif i > 0:
            step.insert(0, LIF(dim, tau=tau))
        parts.append(Serial(*step) if i < layers - 1 else Residual(Serial(*step)))
    return Serial(*parts)


def _linear(dim: int, width: int) -> Mixer:
    return Pointwise(nn.Linear(dim, width))
