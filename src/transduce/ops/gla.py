"""Gated linear attention: a matrix state whose every key channel fades at its own rate, which may depend on the input.
The core of GLA, HGRN2 and, with the same rate for all channels of a head, of retention."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op, several_steps
from .matrix_state import (
    carry_over,
    check_flags,
    check_inputs,
    chunks,
    compiled,
    cuts,
    initial,
    on_gpu,
    spans,
    why_not_compiled,
    why_not_gpu,
    work_dtype,
)
from .tracing import why_no_triton

_CHUNK, _SUB = 64, 16
"""Steps between two states, and steps within which all pairs are weighed by exact differences of logarithms."""
_CUT = -800.0
"""What stands for the logarithm of zero in sums: its exponential is zero in float64, and a sum of many keeps 11 digits
of the others."""


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, s0: Tensor | None) -> None:
    check_inputs("gated_linear_attention", q, k, v, s0)
    if log_decay.shape != q.shape:
        raise ValueError(
            f"gated_linear_attention needs log_decay of the shape of q, {tuple(q.shape)}, got {tuple(log_decay.shape)}"
        )


@op
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(g_t)) S_(t-1) + k_t v_t^T,  y_t = S_t^T q_t, for each row and head.

    Args:
        q, k: (B,T,H,K). Scale them as you need; nothing is scaled here.
        v: (B,T,H,V).
        log_decay: g (B,T,H,K), natural logarithm of the decay of every key channel, at most 0; -inf forgets
            everything and then has the gradient 0.
        s0: (B,H,K,V), None means zero.
        mask: (B,T) bool. False: the state is kept (decay 1, nothing written), what the inputs hold there (NaN
            included) has no influence, and the output there is unspecified.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.

    Returns:
        y (B,T,H,V) in the dtype of ``v`` and the state behind the last step (B,H,K,V), which is float32, or
        float64 where an input is float64.

    Backends, in order: ``numba`` (CPU: every step taken in registers, analytic backward that keeps one state a chunk;
    differentiable once), ``triton`` (CUDA devices, keys of at most 256 channels: chunks of 32 steps in kernels,
    backward from one state a chunk; differentiable once), ``chunked`` (any device: matrix products inside chunks of 64
    steps; decays only ever enter as exponentials of numbers at most zero, so that no strength of decay overflows),
    ``reference`` (used for a single step, where it is cheaper). ``gated_linear_attention.matrix`` gives the implied
    token-to-token matrix.

    Raises ValueError for shapes that do not fit. Source: S. Yang et al., Gated Linear Attention Transformers with
    Hardware-Efficient Training, arXiv 2312.06635, section 4 (recurrence; chunks and chunks within chunks).
    """
    _check(q, k, v, log_decay, s0)
    check_flags("gated_linear_attention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v, g = (zero_masked(x, mask).to(work) for x in (q, k, v, log_decay))
    state, cut, keep = initial(q, v, s0, work), cuts(resets, mask), torch.exp(g)
    restarts = (None,) * q.shape[1] if cut is None else cut[:, :, None, None, None].unbind(1)
    outputs: list[Tensor] = []
    for q_t, k_t, v_t, keep_t, restart in zip(*(x.unbind(1) for x in (q, k, v, keep)), restarts):
        if restart is not None:
            state = torch.where(restart, 0, state)
        state = keep_t[..., :, None] * state + k_t[..., :, None] * v_t[..., None, :]
        outputs.append((q_t[..., None, :] @ state).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), state


@gated_linear_attention.backend("numba", when=on_tensors(why_not_compiled))
def _numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, log_decay, s0)
    check_flags("gated_linear_attention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v, g = (zero_masked(x, mask).to(work) for x in (q, k, v, log_decay))
    cut, keep = cuts(resets, mask), torch.exp(g)
    if cut is not None:
        keep = torch.where(cut[..., None, None], 0, keep)
    y, state = compiled(q, k, v, keep, initial(q, v, s0, work))
    return y.to(dtype), state


@gated_linear_attention.backend("triton", when=on_tensors(why_not_gpu), here=why_no_triton)
def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, log_decay, s0)
    check_flags("gated_linear_attention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v, g = (zero_masked(x, mask).to(work) for x in (q, k, v, log_decay))
    y, state = on_gpu(q, k, v, g, initial(q, v, s0, work), cuts(resets, mask))
    return y.to(dtype), state


@gated_linear_attention.backend("chunked", when=several_steps(4))
def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, log_decay, s0)
    check_flags("gated_linear_attention", q, mask, resets)
    dtype, work, steps = v.dtype, work_dtype(q, k, v, log_decay), q.shape[1]
    q, k, v = (zero_masked(x, mask).to(work) for x in (q, k, v))
    g, state = _exponents(log_decay, mask, resets), initial(q, v, s0, work)
    outputs: list[Tensor] = []
    for part, size in spans(steps, _CHUNK):
        y, state = _run_chunks(*(chunks(x[:, part], size) for x in (q, k, v, g)), state)
        outputs.append(y)
    return torch.cat(outputs, 1).to(dtype), state


def _exponents(log_decay: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """Finite logarithms in float64, since differences of their sums are wanted to full precision."""
    g = zero_masked(log_decay, mask).double()
    cut, restart = torch.isneginf(g), cuts(resets, mask)
    if restart is not None:
        cut = cut | restart[..., None, None]
    return torch.where(cut, _CUT, g)


def _run_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Whole chunks (B,H,N,C,...) and an entering state -> outputs (B,N*C,H,V) and the state behind them."""
    total, work = g.cumsum(3), q.dtype
    local = _within(q, k, total) @ v
    out = (total[..., -1:, :] - total).to(work).exp()  # from each step to the end of its chunk
    written = (k * out).mT @ v
    fades = total[..., -1, :].to(work).exp()[..., None].unbind(2)
    entering, state = carry_over(state, fades, written)
    y = local + (q * total.to(work).exp()) @ entering
    return y.movedim(1, 3).flatten(1, 2), state


def _within(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """(...,C,C): sum_c q_ic k_jc exp(total_ic - total_jc) for j <= i, ``total`` the sums of g inside the chunk.

    A sub-chunk of queries meets the keys before it through the sum R at its beginning, exp(total_i - R)
    exp(R - total_j), both at most 1; the keys in it by the differences themselves.
    """
    size, work = q.shape[-2], q.dtype
    rows: list[Tensor] = []
    for start in range(0, size, _SUB):
        stop = min(start + _SUB, size)
        here, q_here, k_here = (x[..., start:stop, :] for x in (total, q, k))
        gap = here[..., :, None, :] - here[..., None, :, :]
        below = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).tril()
        weight = torch.where(below[..., None], gap, -torch.inf).to(work).exp()
        row = [(q_here[..., :, None, :] * k_here[..., None, :, :] * weight).sum(-1)]
        if start:
            border = total[..., start - 1 : start, :]
            ahead = q_here * (here - border).to(work).exp()
            behind = k[..., :start, :] * (border - total[..., :start, :]).to(work).exp()
            row.insert(0, ahead @ behind.mT)
        if stop < size:
            row.append(q.new_zeros(*q.shape[:-2], stop - start, size - stop))
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


def gated_linear_matrix(
    q: Tensor,
    k: Tensor,
    log_decay: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,H,T,T) with y[:, t, h] = sum_s M[:, h, t, s] v[:, s, h] for a zero initial state.

    M[t, s] = sum_c q_tc k_sc exp(g_(s+1)c + ... + g_tc) for s <= t with no reset between them, else zero. Arguments
    as for :func:`gated_linear_attention`. Costs O(B H T^2) memory: for analysis and tests.
    """
    _check(q, k, k, log_decay, None)
    check_flags("gated_linear_attention", q, mask, resets)
    work, steps = work_dtype(q, k, log_decay), q.shape[1]
    q, k = (chunks(zero_masked(x, mask).to(work), steps) for x in (q, k))
    total = chunks(_exponents(log_decay, mask, resets), steps).cumsum(3)
    return _within(q, k, total).squeeze(2)


gated_linear_attention.matrix = gated_linear_matrix


@gated_linear_attention.cases
def gla_cases() -> Iterator[Case]:
    """Ragged tails, several chunks, weak and strong decays, cuts of some and of all channels."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str,
        shape: tuple[int, int, int, int, int],
        *,
        start: bool = True,
        flags: str = "",
        decay: float = 0.1,
        tiny: bool = False,
    ) -> Case:
        batch, steps, heads, width, values = shape
        keys = (batch, steps, heads, width)
        args = (normal(*keys), normal(*keys), normal(*keys[:3], values), -decay * normal(*keys).abs())
        if start:
            args += (normal(batch, heads, width, values),)
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        grad = tuple(range(len(args)))
        return Case(name, args, kwargs, grad=grad, tiny=tiny, scale=width**0.5 * min(steps, 10))

    yield case("tiny", (2, 5, 2, 2, 3), tiny=True)
    yield case("tiny, mask and resets", (2, 5, 1, 2, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 5, 4))
    yield case("ragged tail", (2, 151, 2, 7, 5))
    yield case("whole chunks, no initial state", (2, 128, 3, 8, 8), start=False)
    yield case("wide heads", (1, 70, 1, 40, 65))
    yield case("mask", (3, 99, 2, 5, 5), flags="mask")
    yield case("resets", (2, 99, 2, 5, 5), flags="resets")
    yield case("mask, resets", (2, 70, 2, 5, 5), flags="mask resets")
    yield case("decays of e to the -3", (2, 90, 2, 5, 5), decay=3.0)
    yield case("decays of e to the -300", (2, 90, 2, 5, 5), decay=300.0)
    yield case("no decay", (2, 90, 2, 5, 5), decay=0.0)
    mixed = case("", (2, 90, 2, 5, 5)).args
    rates = 10 ** torch.linspace(-4, 3, 5, dtype=torch.float64)  # channels side by side, slow and fast
    yield Case(
        "rates from 1e-4 to 1e3", (*mixed[:3], mixed[3] * 10 * rates, mixed[4]), grad=(0, 1, 2, 3, 4), scale=20.0
    )
    cut = torch.where(torch.rand(2, 90, 2, 5, generator=g) < 0.1, -torch.inf, mixed[3])
    yield Case("decay of -inf", (*mixed[:3], cut, mixed[4]), grad=(0, 1, 2, 3, 4), scale=20.0)
