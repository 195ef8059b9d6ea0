"""The selective scan: a diagonal state space model whose step width, input and output weights depend on the input, the
core of Mamba."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op
from .scan import linear_scan
from .tracing import why_no_triton, why_not_kernel, why_not_triton

_CHUNK = 64
"""Steps of the chunked form whose states are in memory at the same time."""


def _check(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None) -> None:
    if x.dim() != 3 or dt.shape != x.shape or a.dim() != 2 or a.shape[0] != x.shape[2]:
        raise ValueError(
            "selective_scan needs x and dt (B,T,D) and a (D,N), "
            f"got {tuple(x.shape)}, {tuple(dt.shape)} and {tuple(a.shape)}"
        )
    read = (*x.shape[:2], a.shape[1])
    for label, tensor, shape in (("b", b, read), ("c", c, read), ("h0", h0, (x.shape[0], *a.shape))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"selective_scan needs {label} of shape {shape}, got {tuple(tensor.shape)}")


def _check_steps(x: Tensor, mask: Tensor | None, resets: Tensor | None) -> None:
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != x.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"selective_scan needs a bool {label} of shape {tuple(x.shape[:2])}, "
                f"got {flags.dtype} {tuple(flags.shape)}"
            )


_Prepared = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def _prepare(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    h0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> _Prepared:
    """Everything checked, in the working dtype, without what masked steps hold, and with zeros for what is None.

    A step width of zero is exactly "the row does not advance": exp(0) h + 0.
    """
    x, dt, a, b, c = tensors
    _check(x, dt, a, b, c, h0)
    _check_steps(x, mask, resets)
    given = [t for t in (*tensors, h0) if t is not None]
    work = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    x, dt, b, c = (zero_masked(t, mask).to(work) for t in (x, dt, b, c))
    h0 = x.new_zeros(x.shape[0], *a.shape) if h0 is None else h0.to(work)
    if resets is not None and mask is not None:
        resets = resets & mask
    return x, dt, a.to(work), b, c, h0, resets


@op
def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t,  y_t = sum_n c_tn h_tn, for each row and channel.

    Args:
        x, dt: (B,T,D), inputs and step widths (positive where the model is stable; they are used as given).
        a: (D,N), rates, negative where the model is stable. dt a is expected below 87.
        b, c: (B,T,N), how inputs enter the N states of every channel and how these are read; shared by all channels.
        h0: (B,D,N), None means zero.
        mask: (B,T) bool. False: the state is kept, what the inputs hold there (NaN included) has no influence, and
            the output there is unspecified.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.

    Returns:
        y (B,T,D) in the dtype of ``x`` and the state behind the last step (B,D,N), which is float32, or float64
        where an input is float64.

    Backends, in order: ``numba`` (CPU: states live in the cache, (B,T,D,N) never exists, forward or backward),
    ``triton`` (CUDA devices: the same, one step after the other, so that rows and channels must fill the device),
    ``chunked`` (any device: the states of 64 steps at a time, computed again for the gradient), ``reference``. The
    first two can be differentiated once only. ``selective_scan.matrix`` gives the implied token-to-token matrix.

    Raises ValueError for shapes that do not fit. Source: A. Gu and T. Dao, Mamba: Linear-Time Sequence Modeling with
    Selective State Spaces, arXiv 2312.00752, section 3.2 (selection; a by zero-order hold, b by its first-order
    form) and section 3.3.1 (states computed again in the backward pass).
    """
    dtype = x.dtype
    x, dt, a, b, c, h, resets = _prepare((x, dt, a, b, c), h0, mask, resets)
    outputs: list[Tensor] = []
    restarts = [None] * x.shape[1] if resets is None else resets[..., None, None].unbind(1)
    for x_t, dt_t, b_t, c_t, restart in zip(*(t.unbind(1) for t in (x, dt, b, c)), restarts):
        if restart is not None:
            h = torch.where(restart, 0, h)
        h = torch.exp(dt_t[..., None] * a) * h + (dt_t * x_t)[..., None] * b_t[:, None]
        outputs.append((h * c_t[:, None]).sum(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)).to(dtype), h


# ---------------------------------------------------------------- compiled


@functools.cache
def _compiled() -> ModuleType:
    from . import selective_scan_numba  # imports numba

    return selective_scan_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import selective_scan_triton  # imports triton

    return selective_scan_triton


class _Selective(torch.autograd.Function):
    """The kernels; their equations stand in ``selective_scan_numba``."""

    @staticmethod
    def forward(ctx, kernels, x, dt, a, b, c, h0, resets):  # noqa: ANN001, ANN205 (torch's own signature)
        inputs = (x, dt, a, b, c)
        y, h, marks = kernels.forward(inputs, h0, resets, True)
        ctx.kernels = kernels
        ctx.save_for_backward(*inputs, marks, resets)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dh):  # noqa: ANN001, ANN205
        *inputs, marks, resets = ctx.saved_tensors
        found = ctx.kernels.backward(tuple(inputs), marks, resets, dy.contiguous(), dh.contiguous())
        return None, *(g if need else None for g, need in zip(found, ctx.needs_input_grad[1:])), None


def _run(
    kernels: ModuleType,
    given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    h0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = given[0].dtype
    *tensors, resets = _prepare(given, h0, mask, resets)
    tensors = [t.contiguous() for t in tensors]
    resets = None if resets is None else resets.contiguous()
    if not tensors[0].numel() or not given[2].shape[1]:
        return selective_scan.reference(*given, h0, mask=mask, resets=resets)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        y, h = _Selective.apply(kernels, *tensors, resets)
    else:
        y, h, _ = kernels.forward(tuple(tensors[:5]), tensors[5], resets, False)
    return y.to(dtype), h


@selective_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _run(_compiled(), (x, dt, a, b, c), h0, mask, resets)


@selective_scan.backend("triton", when=on_tensors(why_not_triton), here=why_no_triton)
def _triton_backend(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _run(_gpu(), (x, dt, a, b, c), h0, mask, resets)


# ---------------------------------------------------------------- chunked


def _chunk(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs of some steps and the state behind them, all states at once."""
    decay = torch.exp(dt[..., None] * a).flatten(2)
    new = ((dt * x)[..., None] * b[:, :, None]).flatten(2)
    states = linear_scan(decay, new, h.flatten(1), resets=resets)
    y = (states.unflatten(2, a.shape) @ c[..., None]).squeeze(-1)
    return y, states[:, -1].unflatten(1, a.shape)


@selective_scan.backend("chunked")
def _chunked_backend(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x, dt, a, b, c, h, resets = _prepare((x, dt, a, b, c), h0, mask, resets)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (x, dt, a, b, c, h))
    again = trains and x.shape[1] > _CHUNK and not torch.compiler.is_compiling()
    outputs: list[Tensor] = []
    for begin in range(0, x.shape[1], _CHUNK):
        part = slice(begin, begin + _CHUNK)
        flags = None if resets is None else resets[:, part]
        args = (x[:, part], dt[:, part], a, b[:, part], c[:, part], h, flags)
        y, h = checkpoint(_chunk, *args, use_reentrant=False, preserve_rng_state=False) if again else _chunk(*args)
        outputs.append(y)
    y = torch.cat(outputs, 1) if outputs else torch.zeros_like(x)
    return y.to(dtype), h


# ---------------------------------------------------------------- the implied matrix


def selective_matrix(
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,D,T,T) with y[:, t, d] = sum_s M[:, d, t, s] x[:, s, d] for a zero initial state.

    M[t, s] = sum_n c_tn exp(a_n (dt_(s+1) + ... + dt_t)) dt_s b_sn for s <= t with no reset between them.
    Arguments as for :func:`selective_scan`. Costs O(B D T^2) memory: for analysis and tests.
    """
    _check(dt, dt, a, b, c, None)
    _, dt, a, b, c, _, resets = _prepare((dt, dt, a, b, c), None, mask, resets)
    steps = dt.shape[1]
    time = dt.double().cumsum(1).mT  # (B,D,T); differences of sums are wanted to full precision
    allowed = torch.ones(steps, steps, dtype=torch.bool, device=dt.device).tril()
    if resets is not None:
        segment = resets.long().cumsum(1)
        allowed = (allowed & (segment[:, :, None] == segment[:, None, :]))[:, None]
    gap = torch.where(allowed, time[..., :, None] - time[..., None, :], 0)
    found = torch.zeros_like(gap, dtype=dt.dtype)
    for a_n, b_n, c_n in zip(a.unbind(1), b.unbind(2), c.unbind(2)):
        decay = torch.exp(gap * a_n[:, None, None]).to(dt.dtype)
        found = found + c_n[:, None, :, None] * decay * b_n[:, None, None, :]
    return torch.where(allowed, found * dt.mT[..., None, :], 0)


selective_scan.matrix = selective_matrix


# ---------------------------------------------------------------- cases


@selective_scan.cases
def selective_cases() -> Iterator[Case]:
    """Channels that fill no vector, several chunks, optional arguments left out, cuts, extremes."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str,
        shape: tuple[int, int, int, int],
        *,
        flags: str = "",
        given: int = 6,
        tiny: bool = False,
        width: float = 1.0,
        size: float = 1.0,
    ) -> Case:
        batch, steps, channels, states = shape
        dt = width * normal(batch, steps, channels).abs()
        a, b, c = -normal(channels, states).exp(), normal(batch, steps, states), normal(batch, steps, states)
        args = (size * normal(batch, steps, channels), dt, a, b, c)
        args = (*args, size * normal(batch, channels, states))[:given]
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.7 for f in flags.split()}
        scale = size * max(1.0, width) * max(4.0, states)
        return Case(name, args, kwargs, grad=tuple(range(len(args))), tiny=tiny, scale=scale)

    yield case("tiny", (2, 4, 3, 2), tiny=True)
    yield case("tiny, mask and resets", (2, 5, 2, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 7, 5))
    yield case("a vector and a rest, several chunks", (2, 71, 21, 3))
    yield case("two threads, several strips", (3, 33, 140, 16))
    yield case("mask", (2, 21, 18, 3), flags="mask")
    yield case("resets", (2, 35, 18, 3), flags="resets")
    yield case("no initial state", (2, 9, 32, 4), given=5)
    yield case("forgets at once", (2, 11, 17, 3), width=1e3, size=1e-3)
    yield case("hardly moves", (2, 11, 17, 3), width=1e-6)
    yield case("huge inputs", (2, 11, 17, 3), size=1e12)
