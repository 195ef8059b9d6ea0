"""Gated recurrences whose state-to-state weights are vectors (ParaRNN), one step after the other in one compiled pass.

No channel reads another one, so a step costs no product of matrices; :mod:`transduce.ops.newton` solves the same
recurrences in parallel over time. ``mask``, ``resets`` and dtypes are those of :mod:`transduce.ops.rnn`. Backends, in
order: ``numba`` (float32 on the CPU; the backward pass computes the gates again instead of keeping them, and can be
differentiated once), ``reference``. Source: arXiv 2510.21450, section 3.
"""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op
from .rnn import _check_steps, _dtypes, _effective, _fresh, _held, _stack, _steps, _why_not_numba


def _check(name: str, vectors: int, pre: Tensor, weight: Tensor, states: tuple[Tensor, ...]) -> None:
    width = weight.shape[-1]
    if pre.dim() != 3 or weight.shape != (vectors, width) or pre.shape[2] != 3 * width:
        raise ValueError(
            f"{name} needs pre (B,T,3*D) and weight ({vectors},D), got {tuple(pre.shape)} and {tuple(weight.shape)}"
        )
    for state in states:
        if state.shape != (pre.shape[0], width):
            raise ValueError(
                f"{name} needs an initial state of shape {(pre.shape[0], width)}, got {tuple(state.shape)}"
            )


def para_gru_step(pre: Tensor, weight: Tensor, h: Tensor) -> Tensor:
    """One step of :func:`para_gru`: pre (B,3D), h (B,D) -> h (B,D)."""
    pre_z, pre_r, pre_n = pre.chunk(3, -1)
    a_z, a_r, a_n = weight
    z, r = torch.sigmoid(pre_z + a_z * h), torch.sigmoid(pre_r + a_r * h)
    return torch.lerp(h, torch.tanh(pre_n + a_n * (r * h)), z)


def para_lstm_step(pre: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of :func:`para_lstm`: pre (B,3D), h and c (B,D) -> h and c."""
    pre_f, pre_g, pre_o = pre.chunk(3, -1)
    a_f, a_g, a_o, p_f, p_o = weight
    f, g = torch.sigmoid(pre_f + a_f * h + p_f * c), torch.tanh(pre_g + a_g * h)
    c = torch.lerp(g, c, f)
    return torch.sigmoid(pre_o + a_o * h + p_o * c) * torch.tanh(c), c


@op
def para_gru(
    pre: Tensor, weight: Tensor, h0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """The GRU with vectors between states::

        z = sigmoid(pre_z + a_z h)   r = sigmoid(pre_r + a_r h)   n = tanh(pre_n + a_n r h)   h' = z n + (1 - z) h

    pre (B,T,3D) in the order z, r, n; weight (3,D): a_z, a_r, a_n; h0 (B,D) -> h (B,T,D). See the top of this module.
    """
    _check("para_gru", 3, pre, weight, (h0,))
    _check_steps("para_gru", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0)
    pre, weight, h = zero_masked(pre, mask).to(work), weight.to(work), h0.to(work)
    states: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        h = _held(para_gru_step(p, weight, _fresh(h, reset)), h, valid)
        states.append(h)
    return _stack(states, h, dtype)


@op
def para_lstm(
    pre: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The LSTM with vectors between states, coupled gates and peepholes::

        f = sigmoid(pre_f + a_f h + p_f c)    g = tanh(pre_g + a_g h)    c' = f c + (1 - f) g
        o = sigmoid(pre_o + a_o h + p_o c')   h' = o tanh(c')

    pre (B,T,3D) in the order f, g, o; weight (5,D): a_f, a_g, a_o, p_f, p_o; h0, c0 (B,D) -> (h, c), both (B,T,D). See
    the top of this module.
    """
    _check("para_lstm", 5, pre, weight, (h0, c0))
    _check_steps("para_lstm", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0, c0)
    pre, weight, h, c = zero_masked(pre, mask).to(work), weight.to(work), h0.to(work), c0.to(work)
    outputs: list[Tensor] = []
    memories: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        after = para_lstm_step(p, weight, _fresh(h, reset), _fresh(c, reset))
        h, c = (_held(new, old, valid) for new, old in zip(after, (h, c)))
        outputs.append(h)
        memories.append(c)
    return _stack(outputs, h, dtype), _stack(memories, c, dtype)


@para_gru.backend("numba", when=on_tensors(_why_not_numba))
def _para_gru_numba(
    pre: Tensor, weight: Tensor, h0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    from . import para_numba

    _check("para_gru", 3, pre, weight, (h0,))
    _check_steps("para_gru", pre, mask, resets)
    dtype, _ = _dtypes(pre, weight, h0)
    return para_numba.ParaGRU.apply(pre, weight, h0, mask, _effective(mask, resets)).to(dtype)


@para_lstm.backend("numba", when=on_tensors(_why_not_numba))
def _para_lstm_numba(
    pre: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from . import para_numba

    _check("para_lstm", 5, pre, weight, (h0, c0))
    _check_steps("para_lstm", pre, mask, resets)
    dtype, _ = _dtypes(pre, weight, h0, c0)
    h, c = para_numba.ParaLSTM.apply(pre, weight, h0, c0, mask, _effective(mask, resets))
    return h.to(dtype), c.to(dtype)


def _cases(vectors: int, states: int) -> Iterator[Case]:
    g = torch.Generator().manual_seed(vectors)

    def case(name: str, batch: int, steps: int, width: int, *, flags: str = "", tiny=False, scale=1.0) -> Case:
        pre = torch.randn(batch, steps, 3 * width, dtype=torch.float64, generator=g) * scale
        weight = torch.randn(vectors, width, dtype=torch.float64, generator=g) / 2
        rest = [torch.randn(batch, width, dtype=torch.float64, generator=g) for _ in range(states)]
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.6 for f in flags.split()}
        return Case(name, (pre, weight, *rest), kwargs, grad=tuple(range(2 + states)), tiny=tiny)

    yield case("tiny", 2, 3, 2, tiny=True)
    yield case("tiny, mask and resets", 2, 4, 2, flags="mask resets", tiny=True)
    yield case("one step", 5, 1, 7)
    yield case("one row", 1, 19, 11)
    yield case("odd", 7, 23, 37)
    yield case("mask", 6, 17, 9, flags="mask")
    yield case("resets", 6, 17, 9, flags="resets")
    yield case("saturated gates", 3, 9, 5, flags="mask", scale=100.0)


@para_gru.cases
def para_gru_cases() -> Iterator[Case]:
    return _cases(3, 1)


@para_lstm.cases
def para_lstm_cases() -> Iterator[Case]:
    return _cases(5, 2)
