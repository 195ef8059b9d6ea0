"""Classical recurrent networks, cut at the recurrent part.

The products with the inputs do not depend on the state, so callers compute them for all time at once
(``pre``); what is left here is the loop. Common to :func:`elman`, :func:`gru` and :func:`lstm`:

* ``mask`` (B,T) bool: where False the row does not advance. The state is kept, the output there is the kept
  state, and what ``pre`` holds (NaN included) reaches neither values nor gradients.
* ``resets`` (B,T) bool: where True the state is zero before the step. A reset at a masked step has no effect.
* Heads: a weight (G*D,K) instead of (G*D,D) is block-diagonal; its rows stand as in the dense one, and the D/K heads
  of the state do not see each other.
* The result has the promoted dtype of ``pre``, the weights and the initial state. Half precision is computed
  in float32. Under ``torch.autocast`` the products of the loop run in autocast's dtype, of the compiled kernels only
  the one of the weights' gradient: with few rows a step in float32 is as fast.
* Backends, in order: ``numba`` (float32 on the CPU: all steps in one launch, with packed weights), ``triton`` (gru and
  lstm on CUDA devices, heads of at most 32 or, where there is the shared memory, 64 channels: all steps in one launch),
  ``loop`` (any device; torch operations), ``reference``. The fast ones have an analytic backward, one small product a
  step, then a single large one for the weights, and can be differentiated once.

``python -m benchmarks.rnn`` measures layers, input products included, against torch's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor

from ..core.seq import zero_masked
from . import rnn_gates, rnn_loop
from .dispatch import Case, on_tensors, op
from .rnn_cases import recurrent_cases
from .tracing import why_no_triton, why_not_kernel, why_traced

_HALF = (torch.float16, torch.bfloat16)


def _check(name: str, gates: int, pre: Tensor, weight: Tensor, states: tuple[Tensor, ...]) -> None:
    width = weight.shape[0] // gates
    if (
        pre.dim() != 3
        or weight.dim() != 2
        or pre.shape[2] != gates * width
        or weight.shape[0] != gates * width
        or width % max(1, weight.shape[1])
    ):
        raise ValueError(
            f"{name} needs pre (B,T,{gates}*D) and weight ({gates}*D,D), or ({gates}*D,K) with K = D/heads, "
            f"got {tuple(pre.shape)} and {tuple(weight.shape)}"
        )
    for state in states:
        if state.shape != (pre.shape[0], width):
            raise ValueError(
                f"{name} needs an initial state of shape {(pre.shape[0], width)}, got {tuple(state.shape)}"
            )


def _check_steps(name: str, pre: Tensor, mask: Tensor | None, resets: Tensor | None) -> None:
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != pre.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"{name} needs a bool {label} of shape {tuple(pre.shape[:2])}, "
                f"got {flags.dtype} {tuple(flags.shape)}"
            )


def _check_gru(
    pre: Tensor, weight: Tensor, bias: Tensor, h0: Tensor, mask: Tensor | None, resets: Tensor | None
) -> None:
    _check("gru", 3, pre, weight, (h0,))
    _check_steps("gru", pre, mask, resets)
    if bias.shape != h0.shape[1:]:
        raise ValueError(f"gru needs a bias of shape {tuple(h0.shape[1:])}, got {tuple(bias.shape)}")


def _dtypes(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the result, dtype of the computation)"""
    result = tensors[0].dtype
    for t in tensors[1:]:
        result = torch.promote_types(result, t.dtype)
    return result, torch.float32 if result in _HALF else result


def _steps(flags: Tensor | None, steps: int) -> tuple[Tensor | None, ...]:
    """Flags of each step as (B,1) columns."""
    return (None,) * steps if flags is None else flags[..., None].unbind(1)


def recurrent_product(h: Tensor, weight: Tensor) -> Tensor:
    """U h for weights (G*D,D); with (G*D,K) U is block-diagonal and block i reads the i-th K numbers of h.
    (B,D) -> (B,G*D)."""
    size, width = weight.shape[1], h.shape[1]
    if size == width:
        return h @ weight.mT
    blocks = weight.view(-1, width // size, size, size)  # gate, head, row, column
    return torch.einsum("bhk,ghdk->bghd", h.view(len(h), -1, size), blocks).flatten(1)


def _fresh(h: Tensor, reset: Tensor | None) -> Tensor:
    return h if reset is None else torch.where(reset, 0, h)


def _held(new: Tensor, old: Tensor, valid: Tensor | None) -> Tensor:
    return new if valid is None else torch.where(valid, new, old)


def _stack(states: list[Tensor], first: Tensor, dtype: torch.dtype) -> Tensor:
    return (
        torch.stack(states, 1).to(dtype)
        if states
        else first.new_zeros(first.shape[0], 0, first.shape[1], dtype=dtype)
    )


# ---------------------------------------------------------------- references


@op
def elman(
    pre: Tensor, weight: Tensor, h0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """h_t = tanh(pre_t + W h_(t-1)). pre (B,T,D), weight W (D,D), h0 (B,D) -> h (B,T,D).

    ``mask``, ``resets``, dtypes and backends: see the top of this module. Raises ValueError for shapes that
    do not fit. Source: J. Elman, Finding Structure in Time, Cognitive Science 14, 1990.
    """
    _check("elman", 1, pre, weight, (h0,))
    _check_steps("elman", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0)
    pre, weight, h = zero_masked(pre, mask).to(work), weight.to(work), h0.to(work)
    states: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        h = _held(torch.tanh(p + recurrent_product(_fresh(h, reset), weight)), h, valid)
        states.append(h)
    return _stack(states, h, dtype)


@op
def gru(
    pre: Tensor,
    weight: Tensor,
    bias: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The gated recurrent unit, gates in torch's order, reset gate behind the product::

        r = sigmoid(pre_r + U_r h)      z = sigmoid(pre_z + U_z h)
        n = tanh(pre_n + r * (U_n h + bias))
        h' = (1 - z) * n + z * h

    pre (B,T,3D) holds the three pre-activations in the order r, z, n, weight (3D,D) the rows U_r, U_z, U_n;
    bias (D), h0 (B,D) -> h (B,T,D). ``mask``, ``resets``, dtypes and backends: see the top of this module.
    Raises ValueError for shapes that do not fit. Source: K. Cho et al., EMNLP 2014, section 2.3; the variant
    of ``torch.nn.GRU``.
    """
    _check_gru(pre, weight, bias, h0, mask, resets)
    dtype, work = _dtypes(pre, weight, bias, h0)
    pre, weight, bias, h = zero_masked(pre, mask).to(work), weight.to(work), bias.to(work), h0.to(work)
    states: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        before = _fresh(h, reset)
        pre_r, pre_z, pre_n = p.chunk(3, -1)
        u_r, u_z, u_n = recurrent_product(before, weight).chunk(3, -1)
        r, z = torch.sigmoid(pre_r + u_r), torch.sigmoid(pre_z + u_z)
        n = torch.tanh(pre_n + r * (u_n + bias))
        h = _held((1 - z) * n + z * before, h, valid)
        states.append(h)
    return _stack(states, h, dtype)


@op
def lstm(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Long short-term memory with a forget gate, gates in torch's order::

        i, f, o = sigmoid(pre_ifo + U_ifo h)      g = tanh(pre_g + U_g h)
        c' = f * c + i * g                        h' = o * tanh(c')

    pre (B,T,4D) holds the pre-activations in the order i, f, g, o, weight (4D,D) the rows of U in the same
    order; h0 and c0 (B,D) -> (h, c), both (B,T,D). ``mask``, ``resets`` (both h and c), dtypes and backends:
    see the top of this module. Raises ValueError for shapes that do not fit. Source: F. Gers, J. Schmidhuber
    and F. Cummins, Learning to Forget, Neural Computation 12, 2000, section 3.
    """
    _check("lstm", 4, pre, weight, (h0, c0))
    _check_steps("lstm", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0, c0)
    pre, weight, h, c = zero_masked(pre, mask).to(work), weight.to(work), h0.to(work), c0.to(work)
    outputs: list[Tensor] = []
    memories: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        i, f, g, o = (p + recurrent_product(_fresh(h, reset), weight)).chunk(4, -1)
        memory = torch.sigmoid(f) * _fresh(c, reset) + torch.sigmoid(i) * torch.tanh(g)
        h, c = _held(torch.sigmoid(o) * torch.tanh(memory), h, valid), _held(memory, c, valid)
        outputs.append(h)
        memories.append(c)
    return _stack(outputs, h, dtype), _stack(memories, c, dtype)


def gru_gates(pre: Tensor, recurrent: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU whose input depends on the state before it (attention inside the recurrence)::

        r, z = sigmoid(pre_rz + recurrent_rz)     n = tanh(pre_n + r * recurrent_n)
        h' = (1 - z) * n + z * h

    pre (B,3D) from the inputs and recurrent (B,3D) = U h + bias, both in the order r, z, n; h (B,D) -> h'
    (B,D). The products stay with the caller, so that it can join them with others that read h. One node in
    the autograd graph instead of a dozen. The result has the promoted dtype; it is computed in float32 at
    least.
    """
    width = h.shape[-1]
    if pre.shape != recurrent.shape or pre.shape != (h.shape[0], 3 * width):
        raise ValueError(
            f"gru_gates needs pre and recurrent of shape {(h.shape[0], 3 * width)}, "
            f"got {tuple(pre.shape)} and {tuple(recurrent.shape)}"
        )
    dtype, work = _dtypes(pre, recurrent, h)
    if why_traced(pre, recurrent, h) is None:
        return rnn_gates.GRUGates.apply(pre.to(work), recurrent.to(work), h.to(work)).to(dtype)
    pre, recurrent, h = pre.to(work), recurrent.to(work), h.to(work)
    r, z = torch.sigmoid(pre[:, : 2 * width] + recurrent[:, : 2 * width]).chunk(2, -1)
    n = torch.tanh(pre[:, 2 * width :] + r * recurrent[:, 2 * width :])
    return torch.lerp(n, h, z).to(dtype)


# ---------------------------------------------------------------- backends


def _effective(mask: Tensor | None, resets: Tensor | None) -> Tensor | None:
    """Resets that happen: a masked step is none."""
    return resets if resets is None or mask is None else resets & mask


def _why_not_numba(*tensors: Tensor) -> str | None:
    reason = why_not_kernel(*tensors)
    if reason is None and torch.float64 in [t.dtype for t in tensors]:
        return "the kernel computes in float32, an input is float64"
    return reason


@gru.backend("numba", when=on_tensors(_why_not_numba))
def _gru_numba(
    pre: Tensor,
    weight: Tensor,
    bias: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    from . import rnn_numba

    _check_gru(pre, weight, bias, h0, mask, resets)
    dtype, _ = _dtypes(pre, weight, bias, h0)
    return rnn_numba.GRU.apply(pre, weight, bias, h0, mask, _effective(mask, resets)).to(dtype)


@lstm.backend("numba", when=on_tensors(_why_not_numba))
def _lstm_numba(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from . import lstm_numba

    _check("lstm", 4, pre, weight, (h0, c0))
    _check_steps("lstm", pre, mask, resets)
    dtype, _ = _dtypes(pre, weight, h0, c0)
    h, c = lstm_numba.LSTM.apply(pre, weight, h0, c0, mask, _effective(mask, resets))
    return h.to(dtype), c.to(dtype)


@elman.backend("numba", when=on_tensors(_why_not_numba))
def _elman_numba(
    pre: Tensor, weight: Tensor, h0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    from . import rnn_numba

    _check("elman", 1, pre, weight, (h0,))
    _check_steps("elman", pre, mask, resets)
    dtype, _ = _dtypes(pre, weight, h0)
    return rnn_numba.Elman.apply(pre, weight, h0, mask, _effective(mask, resets)).to(dtype)


@elman.backend("loop", when=on_tensors(why_traced))
def _elman_loop(
    pre: Tensor, weight: Tensor, h0: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    _check("elman", 1, pre, weight, (h0,))
    _check_steps("elman", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0)
    return rnn_loop.Elman.apply(pre, weight, h0, mask, _effective(mask, resets), work).to(dtype)


def _gru_steps(
    kernels: ModuleType | None, inputs: tuple[Tensor, ...], mask: Tensor | None, resets: Tensor | None
) -> Tensor:
    """``kernels`` takes all steps at once; None: one torch operation after the other."""
    _check_gru(*inputs, mask, resets)
    dtype, work = _dtypes(*inputs)
    return rnn_loop.GRU.apply(kernels, *inputs, (mask, _effective(mask, resets)), work).to(dtype)


def _lstm_steps(
    kernels: ModuleType | None, inputs: tuple[Tensor, ...], mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    pre, weight, h0, c0 = inputs
    _check("lstm", 4, pre, weight, (h0, c0))
    _check_steps("lstm", pre, mask, resets)
    dtype, work = _dtypes(*inputs)
    h, c = rnn_loop.LSTM.apply(kernels, *inputs, (mask, _effective(mask, resets)), work)
    return h.to(dtype), c.to(dtype)


@gru.backend("triton", when=on_tensors(rnn_gates.why_not_gpu), here=why_no_triton)
def _gru_triton(
    pre: Tensor,
    weight: Tensor,
    bias: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    from . import rnn_triton

    return _gru_steps(rnn_triton, (pre, weight, bias, h0), mask, resets)


@gru.backend("loop", when=on_tensors(why_traced))
def _gru_loop(
    pre: Tensor,
    weight: Tensor,
    bias: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    return _gru_steps(None, (pre, weight, bias, h0), mask, resets)


@lstm.backend("triton", when=on_tensors(rnn_gates.why_not_gpu), here=why_no_triton)
def _lstm_triton(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from . import rnn_triton

    return _lstm_steps(rnn_triton, (pre, weight, h0, c0), mask, resets)


@lstm.backend("loop", when=on_tensors(why_traced))
def _lstm_loop(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _lstm_steps(None, (pre, weight, h0, c0), mask, resets)


# ---------------------------------------------------------------- cases


@elman.cases
def elman_cases() -> Iterator[Case]:
    return recurrent_cases(1, ("state",))


@gru.cases
def gru_cases() -> Iterator[Case]:
    return recurrent_cases(3, ("bias", "state"))


@lstm.cases
def lstm_cases() -> Iterator[Case]:
    return recurrent_cases(4, ("state", "state"))
