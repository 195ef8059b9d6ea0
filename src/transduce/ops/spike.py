"""Leaky integrate-and-fire neurons over time: real currents in, spikes out, with a surrogate gradient."""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Case, on_tensors, op
from .tracing import why_not_kernel

SHARPNESS = 2.0
"""Alpha of the surrogate: the derivative of a spike is taken as alpha/2 / (1 + (pi/2 alpha z)^2), z the distance of the
membrane from the threshold."""
_HALF = (torch.float16, torch.bfloat16)


class _Fire(torch.autograd.Function):
    """1 from zero on, 0 below; its derivative is that of an arc tangent (Fang et al. 2021, arXiv 2007.05785)."""

    @staticmethod
    def forward(ctx, z):  # noqa: ANN001, ANN205 (torch's own signature)
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        (z,) = ctx.saved_tensors
        return grad * SHARPNESS / 2 / (1 + (math.pi / 2 * SHARPNESS * z).square())


def _check(x: Tensor, v0: Tensor | None, tau: float, mask: Tensor | None, resets: Tensor | None) -> torch.dtype:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"lif needs real currents (B,T,D), got {x.dtype} {tuple(x.shape)}")
    if v0 is not None and v0.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"lif needs v0 of shape {(x.shape[0], x.shape[2])}, got {tuple(v0.shape)}")
    if tau < 1:
        raise ValueError(f"lif needs a time constant of at least one step, got tau={tau}")
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != x.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"lif needs a bool {label} of shape {tuple(x.shape[:2])}, got {flags.dtype} {tuple(flags.shape)}"
            )
    return torch.float32 if x.dtype in _HALF else x.dtype


def _start(x: Tensor, v0: Tensor | None, work: torch.dtype) -> Tensor:
    if v0 is not None:
        return v0.to(work)
    return torch.zeros(x.shape[0], x.shape[2], dtype=work, device=x.device)


@op
def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """u_t = v_(t-1) + (x_t - v_(t-1)) / tau,  s_t = [u_t >= threshold],  v_t = (1 - s_t) u_t, elementwise.

    The membrane leaks towards the current, fires at the threshold and is then reset to zero. Backward, a spike has the
    derivative of an arc tangent (:data:`SHARPNESS`), and the reset is a constant.

    Args:
        x: (B,T,D), currents.
        v0: (B,D), membranes before the first step; None means zero.
        tau: time constant in steps, at least 1.
        mask: (B,T) bool. False: the membrane stays as it is, whatever x holds (NaN included); the output is unspecified.
        resets: (B,T) bool. True: the membrane is zero before the step. A reset at a masked step has no effect.

    Returns spikes (B,T,D), 0 or 1 in the dtype of ``x``, and membranes (B,D), float32 or better.

    Backends, in order: ``numba`` (CPU, one pass forward and one backward; can be differentiated once), ``reference``.
    Source: W. Fang et al., arXiv 2007.05785, section 3; hard reset cut from the gradient as in spiking LMUFormer (Liu
    et al. 2024, arXiv 2402.04882, section 3.3).
    """
    work = _check(x, v0, tau, mask, resets)
    v = _start(x, v0, work)
    masks = (None,) * x.shape[1] if mask is None else mask[..., None].unbind(1)
    restarts = (None,) * x.shape[1] if resets is None else resets[..., None].unbind(1)
    spikes: list[Tensor] = []
    for x_t, valid, restart in zip(x.to(work).unbind(1), masks, restarts):
        if valid is not None:
            x_t, restart = torch.where(valid, x_t, 0), None if restart is None else restart & valid
        before = v if restart is None else torch.where(restart, 0, v)
        u = before + (x_t - before) / tau
        s = _Fire.apply(u - threshold)
        after = u * (1 - s.detach())
        spikes.append(s if valid is None else torch.where(valid, s, 0))
        v = after if valid is None else torch.where(valid, after, v)
    return (torch.stack(spikes, 1) if spikes else torch.zeros_like(x)).to(x.dtype), v


@functools.cache
def _compiled() -> ModuleType:
    from . import spike_numba  # imports numba

    return spike_numba


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, v0, tau, threshold, mask, resets):  # noqa: ANN001, ANN205
        spikes, v, membrane = _compiled().forward(x, v0, tau, threshold, mask, resets)
        ctx.save_for_backward(membrane, mask, resets)
        ctx.constants = tau, threshold
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_v):  # noqa: ANN001, ANN205
        membrane, mask, resets = ctx.saved_tensors
        dx, dv0 = _compiled().backward(grad.contiguous(), grad_v, membrane, *ctx.constants, mask, resets)
        return dx, dv0, None, None, None, None


@lif.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    work = _check(x, v0, tau, mask, resets)
    currents, v = x.to(work).contiguous(), _start(x, v0, work).to(work).contiguous()
    mask, resets = (None if t is None else t.contiguous() for t in (mask, resets))
    if torch.is_grad_enabled() and (currents.requires_grad or v.requires_grad):
        spikes, after = _Lif.apply(currents, v, tau, threshold, mask, resets)
    else:
        spikes, after, _ = _compiled().forward(currents, v, tau, threshold, mask, resets)
    return spikes.to(x.dtype), after


@lif.cases
def lif_cases() -> Iterator[Case]:
    """Currents that make neurons fire often, seldom and never; one step, odd sizes, marks. The surrogate is not the
    derivative of what is computed, so no case is ``tiny`` (a numerical gradient of a spike is zero)."""
    g = torch.Generator().manual_seed(0)

    def case(name: str, shape: tuple[int, int, int], scale: float, settings: dict, **marks: float) -> Case:
        x = scale * torch.randn(*shape, generator=g, dtype=torch.float64) + 0.5
        v0 = torch.rand(shape[0], shape[2], generator=g, dtype=torch.float64)
        flags = {k: torch.rand(shape[:2], generator=g) < share for k, share in marks.items()}
        return Case(name, (x, v0), {**settings, **flags}, grad=(0, 1))

    yield case("often", (3, 17, 9), 3.0, {})
    yield case("seldom", (2, 31, 20), 1.0, {"tau": 4.0})
    yield case("never", (2, 9, 5), 0.1, {"threshold": 50.0})
    yield case("one step", (3, 1, 7), 3.0, {})
    yield case("no memory", (2, 11, 5), 2.0, {"tau": 1.0})
    yield case("marks", (3, 23, 9), 3.0, {}, mask=0.6, resets=0.3)
    yield case("two threads", (3, 65, 257), 2.0, {}, resets=0.1)
    yield Case("no initial state", case("", (2, 13, 6), 2.0, {}).args[:1], grad=(0,))
