"""Softmax attention of fixed scores over every prefix of a sequence, with a state of constant size."""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op, several_steps
from .softmax_merge import (
    average,
    check_flags,
    empty_like,
    leaf,
    merge,
    peak_gradient,
    prefixes,
    start_state,
    work_dtype,
)
from .tracing import why_no_triton, why_not_kernel, why_not_triton


def _prepare(
    scores: Tensor,
    values: Tensor,
    start: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    *,
    clean: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Checked and in the dtype of the computation; resets at masked steps are dropped, and with ``clean`` masked steps
    are set to zero."""
    if scores.dim() != 3 or values.dim() != 4 or values.shape[:3] != scores.shape:
        raise ValueError(
            "softmax_scan needs scores (B,T,H) and values (B,T,H,V), "
            f"got {tuple(scores.shape)} and {tuple(values.shape)}"
        )
    check_flags("softmax_scan", scores.shape[:2], mask, resets)
    work = work_dtype("softmax_scan", scores, values, start)
    first = start_state("softmax_scan", values, values.shape[3] + 2, start, work)
    resets = resets if resets is None or mask is None else resets & mask
    if clean:
        scores, values = zero_masked(scores, mask), zero_masked(values, mask)
    return scores.to(work), values.to(work), first, resets


def _leaves(scores: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """(B,T,H,2+V); a masked step is the empty set, which changes nothing."""
    leaves = leaf(scores, values)
    return leaves if mask is None else torch.where(mask[..., None, None], leaves, empty_like(leaves))


@op
def softmax_scan(
    scores: Tensor,
    values: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = sum_{i<=t} e^(s_i) v_i / sum_{i<=t} e^(s_i) for each row and head: a running softmax average.

    Args:
        scores: s (B,T,H), any size of number; -inf gives a step no weight.
        values: v (B,T,H,V).
        start: (B,H,2+V), the state before the first step: the largest score m so far, u = sum e^(s_i - m) and
            w = sum e^(s_i - m) v_i. None: nothing has been seen, which is [-inf, 0, 0].
        mask: (B,T) bool. False: the step adds nothing, what it holds (NaN included) has no influence, and the output
            there is unspecified.
        resets: (B,T) bool. True: the average begins anew at this step. A reset at a masked step has no effect.

    Returns:
        y (B,T,H,V) in the dtype of ``values``, 0 as long as nothing has any weight, and the state behind the last
        step (B,H,2+V), float32, or float64 where an input is float64.

    Backends, in order: ``numba`` (CPU: one pass over memory forward, one backward), ``triton`` (CUDA devices),
    ``doubling`` (any device: log2(T) rounds of merging), ``reference``. The first two can be differentiated once only. ``softmax_scan.matrix``
    gives the weights.

    Raises ValueError for shapes that do not fit. Source: L. Feng et al., Attention as an RNN, arXiv 2405.13956,
    sections 3.1 and 3.2.
    """
    dtype = values.dtype
    scores, values, state, resets = _prepare(scores, values, start, mask, resets)
    leaves = _leaves(scores, values, mask)
    nothing, outputs = empty_like(leaves), []
    restarts = [None] * scores.shape[1] if resets is None else resets[..., None, None].unbind(1)
    for new, restart in zip(leaves.unbind(1), restarts):
        if restart is not None:
            state = torch.where(restart, nothing, state)
        state = merge(state, new)
        outputs.append(average(state))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(values)).to(dtype), state


# ---------------------------------------------------------------- a kernel with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import softmax_scan_numba  # imports numba

    return softmax_scan_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import softmax_scan_triton  # imports triton

    return softmax_scan_triton


class _SoftmaxScan(torch.autograd.Function):
    """With G_i = sum_{t>=i} dy_t / u_t and g_i = -sum_{t>=i} dy_t . y_t / u_t, both times e^(m_i - m_t):
    dv_i = e^(s_i - m_i) G_i and ds_i = e^(s_i - m_i) (G_i . v_i + g_i)."""

    @staticmethod
    def forward(ctx, kernels, scores, values, start, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        y, state, peaks, masses = kernels.forward(scores, values, start, mask, resets)
        ctx.kernels = kernels
        ctx.save_for_backward(scores, values, start, mask, resets, y, state, peaks, masses)
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_state):  # noqa: ANN001, ANN205
        scores, values, start, mask, resets, y, state, peaks, masses = ctx.saved_tensors
        grad = torch.zeros_like(y) if grad is None else grad.contiguous()
        # The state's m is only a scale: what a longer scale does to u and w is taken off its gradient.
        last = torch.zeros_like(state) if grad_state is None else grad_state
        d_scores, d_values, d_sums = ctx.kernels.backward(
            grad, last[..., 1:].contiguous(), (scores, values, start, mask, resets, y, peaks, masses)
        )
        d_peak = (d_sums * start[..., 1:]).sum(-1)
        if grad_state is not None:
            before = torch.cat((start[:, None, :, 0], peaks[:, :-1]), 1)
            if resets is not None:
                before = torch.where(resets[..., None], -math.inf, before)
            raises = scores > before
            raises = raises if mask is None else raises & mask[..., None]
            scale = grad_state[..., 0] - (grad_state[..., 1:] * state[..., 1:]).sum(-1)
            into_scores, into_start, _ = peak_gradient(scale, raises)
            d_scores, d_peak = d_scores + into_scores, d_peak + into_start
        return None, d_scores, d_values, torch.cat((d_peak[..., None], d_sums), -1), None, None


def _run(
    kernels: ModuleType,
    scores: Tensor,
    values: Tensor,
    start: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = values.dtype
    # The kernel never looks at masked steps, so nothing need be zeroed for it.
    scores, values, first, resets = _prepare(scores, values, start, mask, resets, clean=False)
    args = [t.contiguous() for t in (scores, values, first)]
    flags = [None if f is None else f.contiguous() for f in (mask, resets)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in args):
        y, state = _SoftmaxScan.apply(kernels, *args, *flags)
    else:
        y, state, *_ = kernels.forward(*args, *flags)
    return y.to(dtype), state


@softmax_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    scores: Tensor,
    values: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _run(_compiled(), scores, values, start, mask, resets)


@softmax_scan.backend("triton", when=on_tensors(why_not_triton), here=why_no_triton)
def _triton_backend(
    scores: Tensor,
    values: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _run(_gpu(), scores, values, start, mask, resets)


# ---------------------------------------------------------------- logarithmic depth


@softmax_scan.backend("doubling", when=several_steps(3))
def _doubling(
    scores: Tensor,
    values: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = values.dtype
    scores, values, first, resets = _prepare(scores, values, start, mask, resets)
    fades = torch.zeros_like(scores)[..., None]
    if resets is not None:
        fades = torch.where(resets[..., None, None], math.inf, fades)
    states = prefixes(_leaves(scores, values, mask), fades, first)
    return average(states[:, 1:]).to(dtype), states[:, -1]


# ---------------------------------------------------------------- the weights, and cases


def softmax_scan_matrix(scores: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
    """The weights M (B,H,T,T) with y[:, t, h] = sum_s M[:, h, t, s] v[:, s, h] for a fresh start.

    M[t, s] is the softmax of the scores of the valid steps s <= t of t's history, zero elsewhere. Arguments as for
    :func:`softmax_scan`. Costs O(B H T^2) memory: for analysis and tests.
    """
    check_flags("softmax_scan", scores.shape[:2], mask, resets)
    visible = history(scores.shape[:2], mask, resets, scores.device)
    logits = zero_masked(scores, mask).movedim(1, 2)[:, :, None, :]
    seen = (visible[:, None] & ~torch.isneginf(logits)).expand(-1, scores.shape[2], -1, -1)
    weights = torch.softmax(torch.where(seen, logits, -math.inf), -1)
    return torch.where(seen.any(-1, keepdim=True), weights, 0)


def history(
    shape: tuple[int, int], mask: Tensor | None, resets: Tensor | None, device: torch.device
) -> Tensor:
    """(B,T,T) bool: step t and the valid steps s <= t since the last reset."""
    steps = shape[1]
    visible = torch.ones(steps, steps, dtype=torch.bool, device=device).tril().expand(shape[0], -1, -1)
    if mask is not None:
        visible = visible & mask[:, None, :]
    if resets is not None:
        part = (resets if mask is None else resets & mask).long().cumsum(1)
        visible = visible & (part[:, :, None] == part[:, None, :])
    return visible


softmax_scan.matrix = softmax_scan_matrix


@softmax_scan.cases
def softmax_scan_cases() -> Iterator[Case]:
    """Odd lengths, one step, masks and restarts, starts, scores far apart, scores without weight."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str,
        shape: tuple[int, int, int, int],
        *,
        start: bool = True,
        flags: str = "",
        scale: float = 1.0,
        tiny: bool = False,
    ) -> Case:
        batch, steps, heads, width = shape
        args = (scale * normal(batch, steps, heads), normal(*shape))
        if start:
            peak, mass = scale * normal(batch, heads, 1), 1 + normal(batch, heads, 1).abs()
            args += (torch.cat((peak, mass, normal(batch, heads, width)), -1),)
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        return Case(name, args, kwargs, grad=(0, 1, 2)[: len(args)], tiny=tiny)

    yield case("tiny", (2, 5, 2, 3), tiny=True)
    yield case("tiny, mask and resets", (2, 5, 3, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 5))
    yield case("odd", (2, 45, 3, 17))
    yield case("a fresh start", (2, 65, 4, 16), start=False)
    yield case("mask", (3, 37, 2, 5), flags="mask")
    yield case("resets", (2, 37, 5, 1), flags="resets")
    yield case("two threads", (1, 97, 5, 33), flags="mask resets")
    yield case("scores of 300", (2, 45, 2, 5), scale=300.0)
    yield case("scores of 300, mask and resets", (2, 45, 2, 5), scale=300.0, flags="mask resets")
    scores, values, start = case("", (2, 29, 2, 5)).args
    nothing = torch.where(torch.rand(2, 29, 2, generator=g) < 0.4, -math.inf, scores)
    yield Case("scores of -inf", (nothing, values, start), grad=(1, 2))
    yield Case("rising scores", (20.0 * scores.sort(1).values, values, start), grad=(0, 1, 2))
