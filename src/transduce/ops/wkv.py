"""The time mixing of RWKV-4: a softmax average over the past whose scores fade with age, and a bonus for the present."""

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
from .softmax_scan import history
from .tracing import why_not_kernel


def _prepare(
    args: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    mask: Tensor | None,
    resets: Tensor | None,
    *,
    clean: bool = True,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """Checked, in the dtype of the computation, ``start`` filled in; resets at masked steps are dropped, and with
    ``clean`` masked steps are set to zero."""
    k, v, rate, bonus, start = args
    if k.dim() != 3 or v.shape != k.shape or rate.shape != k.shape[2:] or bonus.shape != k.shape[2:]:
        raise ValueError(
            "wkv needs k and v (B,T,D), rate and bonus (D,), got "
            + ", ".join(str(tuple(t.shape)) for t in (k, v, rate, bonus))
        )
    check_flags("wkv", k.shape[:2], mask, resets)
    work = work_dtype("wkv", *args)
    first = start_state("wkv", k, 3, start, work)
    if clean:
        k, v = zero_masked(k, mask), zero_masked(v, mask)
    resets = resets if resets is None or mask is None else resets & mask
    return (k.to(work), v.to(work), rate.to(work), bonus.to(work), first), resets


def _leaves(k: Tensor, v: Tensor, rate: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The step's own pair (B,T,D,3), and by how much it lets the past fade (B,T,D,1); nothing at masked steps."""
    leaves, fades = leaf(k, v[..., None]), rate.expand_as(k)[..., None]
    if mask is not None:
        there = mask[..., None, None]
        leaves, fades = torch.where(there, leaves, empty_like(leaves)), torch.where(there, fades, 0)
    return leaves, fades


@op
def wkv(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = (sum_{i<t} e^(k_i - (t-1-i) r) v_i + e^(k_t + b) v_t) / (the same sum without v), in each channel.

    Args:
        k, v: (B,T,D), finite.
        rate: r (D,), by how much a score sinks with every step, at least 0.
        bonus: b (D,), added to the score of the present step.
        start: (B,D,3), the state before the first step: the largest faded score m so far,
            u = sum e^(k_i - (t-1-i) r - m) and w, the same sum with v_i. None: [-inf, 0, 0], nothing has been seen.
        mask: (B,T) bool. False: the step adds nothing and nothing fades, what it holds (NaN included) has no influence,
            and the output there is unspecified.
        resets: (B,T) bool. True: the history begins anew at this step. A reset at a masked step has no effect.

    Returns:
        y (B,T,D) in the dtype of ``v`` and the state behind the last step (B,D,3), float32, or float64 where an input is
        float64.

    Backends, in order: ``numba`` (CPU: one pass over memory forward, one backward), ``doubling`` (any device: log2(T)
    rounds of merging), ``reference``. The first can be differentiated once only. ``wkv.matrix`` gives the weights.

    Raises ValueError for shapes that do not fit. Source: B. Peng et al., RWKV: Reinventing RNNs for the Transformer
    Era, arXiv 2305.13048, section 3.1.2 and appendix D (the form that does not overflow).
    """
    dtype = v.dtype
    (k, v, rate, bonus, state), resets = _prepare((k, v, rate, bonus, start), mask, resets)
    leaves, fades = _leaves(k, v, rate, mask)
    present, outputs = leaf(k + bonus, v[..., None]), []
    nothing = empty_like(leaves)
    restarts = [None] * k.shape[1] if resets is None else resets[..., None, None].unbind(1)
    for new, fade, now, restart in zip(leaves.unbind(1), fades.unbind(1), present.unbind(1), restarts):
        if restart is not None:
            state = torch.where(restart, nothing, state)
        outputs.append(average(merge(state, now))[..., 0])
        state = merge(state, new, fade)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), state


# ---------------------------------------------------------------- a kernel with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import wkv_numba  # imports numba

    return wkv_numba


class _WKV(torch.autograd.Function):
    """Backward in time with the gradients of numerator and denominator; see the kernel."""

    @staticmethod
    def forward(ctx, k, v, rate, bonus, start, mask, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        y, states = _compiled().forward((k, v, rate, bonus, start), mask, resets, keep=True)
        ctx.save_for_backward(k, v, rate, bonus, mask, resets, y, *states)
        ctx.set_materialize_grads(False)
        return y, torch.stack([s[:, -1] for s in states], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_state):  # noqa: ANN001, ANN205
        k, v, rate, bonus, mask, resets, y, *states = ctx.saved_tensors
        grad = torch.zeros_like(y) if grad is None else grad.contiguous()
        peaks, masses, sums = states
        last = y.new_zeros(*peaks[:, -1].shape, 3) if grad_state is None else grad_state
        d_k, d_v, d_rate, d_bonus, d_mass, d_sum = _compiled().backward(
            grad, last[..., 1].contiguous(), last[..., 2].contiguous(), (k, v, rate, bonus, y, *states), (mask, resets)
        )
        d_peak = d_mass * masses[:, 0] + d_sum * sums[:, 0]
        if grad_state is not None:
            before = peaks[:, :-1]
            if resets is not None:
                before = torch.where(resets[..., None], -math.inf, before)
            raises = k > before - rate
            raises = raises if mask is None else raises & mask[..., None]
            # The state's m is only a scale: what a longer scale does to u and w is taken off its gradient.
            scale = last[..., 0] - last[..., 1] * masses[:, -1] - last[..., 2] * sums[:, -1]
            into_k, into_start, step = peak_gradient(scale, raises)
            advanced = torch.ones_like(k[..., 0]) if mask is None else mask.to(k.dtype)
            through = torch.nn.functional.pad(advanced.cumsum(1), (1, 0))
            since = through[:, -1:] - through.gather(1, step)
            d_k, d_peak, d_rate = d_k + into_k, d_peak + into_start, d_rate - scale * since
        return d_k, d_v, d_rate.sum(0), d_bonus.sum(0), torch.stack((d_peak, d_mass, d_sum), -1), None, None


@wkv.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    # The kernel never looks at masked steps, so nothing need be zeroed for it.
    args, resets = _prepare((k, v, rate, bonus, start), mask, resets, clean=False)
    args = tuple(t.contiguous() for t in args)
    flags = [None if f is None else f.contiguous() for f in (mask, resets)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in args):
        y, state = _WKV.apply(*args, *flags)
    else:
        y, states = _compiled().forward(args, *flags, keep=False)
        state = torch.stack([s[:, -1] for s in states], -1)
    return y.to(dtype), state


# ---------------------------------------------------------------- logarithmic depth


@wkv.backend("doubling", when=several_steps(3))
def _doubling(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    (k, v, rate, bonus, first), resets = _prepare((k, v, rate, bonus, start), mask, resets)
    leaves, fades = _leaves(k, v, rate, mask)
    cut = None if resets is None else resets[..., None, None]
    if cut is not None:
        fades = torch.where(cut, math.inf, fades)
    states = prefixes(leaves, fades, first)
    before = states[:, :-1]
    if cut is not None:
        before = torch.where(cut, empty_like(leaves), before)
    return average(merge(before, leaf(k + bonus, v[..., None])))[..., 0].to(dtype), states[:, -1]


# ---------------------------------------------------------------- the weights, and cases


def wkv_matrix(
    k: Tensor, rate: Tensor, bonus: Tensor, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """The weights M (B,D,T,T) with y[:, t, d] = sum_s M[:, d, t, s] v[:, s, d] for a fresh start; rows sum to 1.

    Arguments as for :func:`wkv`. Rows of masked steps are unspecified. Costs O(B D T^2) memory: for analysis and tests.
    """
    steps = k.shape[1]
    check_flags("wkv", k.shape[:2], mask, resets)
    visible = history(k.shape[:2], mask, resets, k.device)
    there = torch.ones_like(k[..., 0]) if mask is None else mask.to(k.dtype)
    place = there.cumsum(1)
    age = (place[:, :, None] - 1 - place[:, None, :])[:, None]
    keys = zero_masked(k, mask).movedim(1, 2)[:, :, None, :]
    itself = torch.eye(steps, dtype=torch.bool, device=k.device)
    logits = torch.where(itself, keys + bonus[:, None, None], keys - age * rate[:, None, None])
    seen = (visible | itself)[:, None]
    return torch.softmax(torch.where(seen, logits, -math.inf), -1)


wkv.matrix = wkv_matrix


@wkv.cases
def wkv_cases() -> Iterator[Case]:
    """Odd lengths, one step, masks and restarts, starts, keys far apart, no decay and a fast one."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str,
        shape: tuple[int, int, int],
        *,
        start: bool = True,
        flags: str = "",
        scale: float = 1.0,
        decay: float = 0.3,
        tiny: bool = False,
    ) -> Case:
        batch, steps, width = shape
        # Float32 has but 3e-5 between numbers near 300: what is added to such keys must be free of rounding, or that
        # is all a comparison with float64 would see.
        exact = (lambda t: (64 * t).round() / 64) if scale > 10 else (lambda t: t)
        k, v, rate, extra = scale * normal(*shape), normal(*shape), decay * normal(width).abs(), normal(width)
        args = (exact(k), v, exact(rate), exact(extra))
        if start:
            peak, mass = exact(scale * normal(batch, width)), 1 + normal(batch, width).abs()
            args += (torch.stack((peak, mass, normal(batch, width)), -1),)
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        return Case(name, args, kwargs, grad=(0, 1, 2, 3, 4)[: len(args)], tiny=tiny)

    yield case("tiny", (2, 5, 3), tiny=True)
    yield case("tiny, mask and resets", (2, 6, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 7))
    yield case("odd", (2, 45, 19))
    yield case("a fresh start", (2, 33, 33), start=False)
    yield case("mask", (3, 37, 5), flags="mask")
    yield case("resets", (2, 37, 18), flags="resets")
    yield case("two threads", (1, 99, 131), flags="mask resets")
    yield case("keys of 300", (2, 45, 17), scale=300.0)
    yield case("keys of 300, mask and resets", (2, 45, 17), scale=300.0, flags="mask resets")
    yield case("no decay", (2, 45, 5), decay=0.0)
    yield case("fast decay", (2, 45, 5), decay=40.0)
