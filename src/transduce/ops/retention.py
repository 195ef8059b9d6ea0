"""Gated linear recurrence with a matrix state and one decay a head: retention, decayed linear attention, the
core of Mamba-2. The state is an associative memory: keys write values into it, queries read them, old entries
fade."""

from __future__ import annotations

from typing import Callable, Iterator, Sequence

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

_CHUNK = 64
"""Steps that are handled by products of matrices at a time: 32 to 128 were measured on two cores, 64 was
fastest."""


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, s0: Tensor | None) -> None:
    check_inputs("retention", q, k, v, s0)
    if log_decay.shape not in (q.shape[2:3], q.shape[:3]):
        raise ValueError(
            f"retention needs log_decay (H,) or (B,T,H), got {tuple(log_decay.shape)} for q {tuple(q.shape)}"
        )


def _gates(
    log_decay: Tensor, shape: tuple[int, int], mask: Tensor | None, resets: Tensor | None, work: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log decay of every step, finite, and where the past is cut off: (B,T,H) both. ``shape``: (B,T).

    A decay of -inf is a cut, too: no difference of cumulated logarithms may meet inf - inf.
    """
    g = log_decay.to(work)
    if g.dim() == 1:
        g = g.expand(*shape, -1)
    g = zero_masked(g, mask)
    cut = torch.isneginf(g)
    if resets is not None:
        cut = cut | (resets if mask is None else resets & mask)[..., None]
    return torch.where(cut, 0, g), cut


@op
def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_(t-1) + k_t v_t^T,  y_t = S_t^T q_t, for each row and head.

    Args:
        q, k: (B,T,H,K). Scale them as you need; nothing is scaled here.
        v: (B,T,H,V).
        log_decay: g, natural logarithm of the decay, (H,) or (B,T,H), at most 0; -inf forgets everything.
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
    steps, one state a chunk; it only ever takes exponentials of sums of g, never divides by a decay), ``reference``
    (used for a single step, where it is cheaper). ``retention.matrix`` gives the implied token-to-token matrix.

    Raises ValueError for shapes that do not fit. Source: Y. Sun et al., Retentive Network, arXiv 2307.08621,
    section 2.2 (recurrent and chunkwise forms); decays that depend on the input: T. Dao and A. Gu, ICML 2024,
    section 6.
    """
    _check(q, k, v, log_decay, s0)
    check_flags("retention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v = (zero_masked(x, mask).to(work) for x in (q, k, v))
    g, cut = _gates(log_decay, q.shape[:2], mask, resets, work)
    state = initial(q, v, s0, work)
    keep = torch.where(cut, 0, torch.exp(g))
    outputs: list[Tensor] = []
    for q_t, k_t, v_t, keep_t, cut_t in zip(*(x.unbind(1) for x in (q, k, v, keep, cut))):
        state = torch.where(cut_t[..., None, None], 0, state)
        state = keep_t[..., None, None] * state + k_t[..., :, None] * v_t[..., None, :]
        outputs.append((q_t[..., None, :] @ state).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), state


def _every_step(
    inputs: tuple[Tensor, Tensor, Tensor], log_decay: Tensor, mask: Tensor | None, work: torch.dtype
) -> list[Tensor]:
    """q, k, v and a log decay for every step (B,T,H), clean of masked steps."""
    g = log_decay.expand(inputs[0].shape[:3]) if log_decay.dim() == 1 else log_decay
    return [zero_masked(x.to(work), mask) for x in (*inputs, g)]


@retention.backend("numba", when=on_tensors(why_not_compiled))
def _retention_numba(
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
    check_flags("retention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v, g = _every_step((q, k, v), log_decay, mask, work)
    cut, keep = cuts(resets, mask), torch.exp(g)
    if cut is not None:
        keep = torch.where(cut[..., None], 0, keep)
    y, state = compiled(q, k, v, keep[..., None], initial(q, v, s0, work))
    return y.to(dtype), state


@retention.backend("triton", when=on_tensors(why_not_gpu), here=why_no_triton)
def _retention_triton(
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
    check_flags("retention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v, g = _every_step((q, k, v), log_decay, mask, work)
    y, state = on_gpu(q, k, v, g[..., None], initial(q, v, s0, work), cuts(resets, mask))
    return y.to(dtype), state


@retention.backend("chunked", when=several_steps(4))
def _retention_chunked(
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
    check_flags("retention", q, mask, resets)
    dtype, work = v.dtype, work_dtype(q, k, v, log_decay)
    q, k, v = (zero_masked(x, mask).to(work) for x in (q, k, v))
    y, state = over_chunks(_run_chunks, (q, k, v), log_decay, (mask, resets), initial(q, v, s0, work))
    return y.to(dtype), state


def over_chunks(
    run: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    log_decay: Tensor,
    flags: tuple[Tensor | None, Tensor | None],
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Whole chunks and then the rest: ``run(*chunks of the inputs, decays, state)``, outputs joined over time.

    inputs: (B,T,H,...) without what is masked; log_decay: (H,) or (B,T,H); flags: mask and resets, (B,T) or None.
    """
    outputs: list[Tensor] = []
    for part, size in spans(inputs[0].shape[1], _CHUNK):
        here = [None if x is None else x[:, part] for x in flags]
        g = log_decay if log_decay.dim() == 1 else log_decay[:, part]
        decays = _decays(g, *here, (len(inputs[0]), part.stop - part.start), size, state.dtype)
        y, state = run(*(chunks(x[:, part], size) for x in inputs), decays, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def _run_chunks(
    q: Tensor, k: Tensor, v: Tensor, decays: tuple[Tensor, Tensor, Tensor, Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Whole chunks: (B,H,N,C,K) and an entering state -> outputs (B,N*C,H,V) and the state behind them."""
    within, incoming, outgoing, through = decays
    local = ((q @ k.mT) * within) @ v
    written = (k * outgoing[..., None]).mT @ v  # (B,H,N,K,V), what each chunk adds to the state
    fades = through.expand(-1, -1, q.shape[2])[..., None, None].unbind(2)
    entering, state = carry_over(state, fades, written)
    y = torch.baddbmm(local.flatten(0, 2), (q * incoming[..., None]).flatten(0, 2), entering.flatten(0, 2))
    return y.view_as(local).movedim(1, 3).flatten(1, 2), state


def _decays(
    log_decay: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    shape: tuple[int, int],
    size: int,
    work: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All decays that chunks of ``size`` steps need, broadcastable over (B,H,N,...). ``shape``: (B,T).

    Returns ``within`` (C,C): from step j to step i >= j; ``incoming`` (C): from the entering state to step i;
    ``outgoing`` (C): from step j to the end of the chunk; ``through`` (): of the entering state to the end.

    Sums of g are taken in float64, since differences of them are wanted to full precision. Steps on two sides
    of a cut have different segment numbers and a decay of zero. The exponent is made -inf first, so that no
    gradient meets inf - inf.
    """
    if log_decay.dim() == 1 and mask is None and resets is None:
        shape = (1, size)  # one chunk stands for all
    g, cut = _gates(log_decay, shape, mask, resets, torch.float64)
    g, cut = chunks(g, size), chunks(cut, size)
    total, segment = g.cumsum(-1), cut.long().cumsum(-1)
    same = segment[..., :, None] == segment[..., None, :]
    below = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    gap = torch.where(same & below, total[..., :, None] - total[..., None, :], -torch.inf)
    incoming = torch.where(segment == 0, total, -torch.inf)
    exponents = (gap, incoming, gap[..., -1, :], incoming[..., -1])
    within, into, out, through = (torch.exp(x.to(work)) for x in exponents)
    return within, into, out, through


def retention_matrix(
    q: Tensor,
    k: Tensor,
    log_decay: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,H,T,T) with y[:, t, h] = sum_s M[:, h, t, s] v[:, s, h] for a zero initial state.

    M[t, s] = (q_t . k_s) exp(g_(s+1) + ... + g_t) for s <= t with no cut between them, else zero. Arguments
    as for :func:`retention`. Costs O(B H T^2) memory: for analysis and tests.
    """
    _check(q, k, k, log_decay, None)
    check_flags("retention", q, mask, resets)
    work, steps = work_dtype(q, k, log_decay), q.shape[1]
    q, k = (chunks(zero_masked(x, mask).to(work), steps) for x in (q, k))
    within, *_ = _decays(log_decay, mask, resets, (len(q), steps), steps, work)
    return ((q @ k.mT) * within).squeeze(2)


retention.matrix = retention_matrix


@retention.cases
def retention_cases() -> Iterator[Case]:
    """Ragged tails, several chunks, constant and changing decays, cuts, extremes."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str,
        shape: tuple[int, int, int, int, int],
        *,
        changing: bool = True,
        start: bool = True,
        flags: str = "",
        decay: float = 0.1,
        tiny: bool = False,
        grad: tuple[int, ...] = (0, 1, 2, 3, 4),
    ) -> Case:
        batch, steps, heads, width, values = shape
        scores = (normal(batch, steps, heads, width) for _ in range(2))
        log_decay = -decay * normal(*((batch, steps, heads) if changing else (heads,))).abs()
        args = (*scores, normal(batch, steps, heads, values), log_decay)
        if start:
            args += (normal(batch, heads, width, values),)
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        return Case(name, args, kwargs, grad=grad[: len(args)], tiny=tiny, scale=width**0.5 * min(steps, 10))

    yield case("tiny", (2, 5, 2, 2, 3), tiny=True)
    yield case("tiny, constant decay", (1, 6, 2, 2, 2), changing=False, tiny=True)
    yield case("tiny, mask and resets", (2, 5, 1, 2, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 5, 4))
    yield case("ragged tail", (2, 151, 2, 7, 5))
    yield case("constant decay, whole chunks", (2, 128, 3, 8, 8), changing=False, start=False)
    yield case("constant decay, ragged", (2, 77, 3, 8, 8), changing=False)
    yield case("mask", (3, 99, 2, 5, 5), flags="mask")
    yield case("resets", (2, 99, 2, 5, 5), flags="resets")
    yield case("mask, resets, constant decay", (2, 70, 2, 5, 5), flags="mask resets", changing=False)
    yield case("fast decay", (2, 90, 2, 5, 5), decay=300.0)
    yield case("no decay", (2, 90, 2, 5, 5), decay=0.0)
    q, k, v, log_decay, s0 = case("", (2, 90, 2, 5, 5)).args
    cut = torch.where(torch.rand(2, 90, 2, generator=g) < 0.1, -torch.inf, log_decay)
    yield Case("decay of -inf", (q, k, v, cut, s0), grad=(0, 1, 2, 4), scale=20.0)
