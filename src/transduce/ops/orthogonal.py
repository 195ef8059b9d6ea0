"""Lattice's memory: a few slots, each moved only at right angles to itself. What a token adds to a slot is the part
of the news that the slot does not hold yet."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op
from .matrix_state import check_flags, cuts, work_dtype
from .tracing import why_no_triton, why_not_kernel, why_not_triton

FLOOR = 1e-6
"""A norm below this counts as this, so that a slot that faded away is found again by the next write."""
_MOST = 1 << 12
"""Numbers in the slots of a head, rounded up to powers of two, that the registers of a program on a GPU hold."""


def check_slots(name: str, keys: Tensor, v: Tensor, gates: Tensor, fresh: Tensor, s0: Tensor | None) -> None:
    """ValueError unless the shapes are those of :func:`orthogonal_update`."""
    if keys.dim() != 5 or keys.shape[3] != 2 or v.dim() != 4 or v.shape[:3] != keys.shape[:3]:
        raise ValueError(
            f"{name} needs keys (B,T,H,2,M) and v (B,T,H,D), got {tuple(keys.shape)} and {tuple(v.shape)}"
        )
    if gates.shape != (*v.shape[:3], 2):
        raise ValueError(f"{name} needs gates {(*v.shape[:3], 2)}, got {tuple(gates.shape)}")
    slots = (keys.shape[2], keys.shape[4], v.shape[3])
    if fresh.shape != slots:
        raise ValueError(f"{name} needs fresh slots of shape {slots}, got {tuple(fresh.shape)}")
    if s0 is not None and s0.shape != (len(v), *slots):
        raise ValueError(f"{name} needs s0 of shape {(len(v), *slots)}, got {tuple(s0.shape)}")


@op
def orthogonal_update(
    keys: Tensor,
    v: Tensor,
    gates: Tensor,
    fresh: Tensor,
    s0: Tensor | None = None,
    *,
    project: bool = True,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One gradient step a token on how well normalised slots reconstruct its value, exact and in order.

    With slots s_i, directions u_i = s_i / |s_i| and, at each step, write key k, read key q, value v, rate r and
    decay a, for each row and head::

        e    = v - sum_i k_i u_i                                the part of v that the memory does not foresee
        s_i <- a s_i + r (k_i / |s_i|) (e - (u_i . e) u_i)      -r times the gradient of 1/2 |e|^2 by s_i
        y    = sum_i q_i u_i                                    with the new directions

    The bracket is the Jacobian of the normalisation: a write stands at right angles to its slot, so that
    |s_i|^2 grows by exactly the square of what is added, and later writes turn the slot less. Decay undoes that.

    Args:
        keys: (B,T,H,2,M): read key q, then write key k, over the M slots.
        v: (B,T,H,D).
        gates: (B,T,H,2): rate r, then the natural logarithm of the decay a, at most 0.
        fresh: (H,M,D), the slots before the first step and behind a reset, not zero.
        s0: (B,H,M,D), slots to go on from; None means ``fresh``.
        project: False leaves the projection out, (e) instead of the bracket: for comparison.
        mask: (B,T) bool. False: the slots are kept, what the inputs hold there (NaN included) has no influence,
            and the output there is unspecified.
        resets: (B,T) bool. True: the slots are ``fresh`` before the step. A reset at a masked step has no effect.

    Returns:
        y (B,T,H,D) in the dtype of ``v`` and the slots behind the last step (B,H,M,D), which are float32, or
        float64 where an input is float64.

    Backends, in order: ``numba`` (CPU: slots in the first-level cache; backward from slots stored every 16th
    step), ``triton`` (CUDA devices: slots in registers; backward from slots stored every 32nd step), ``reference``. The
    first two can be differentiated once only. The update is not linear in the slots, so no parallel form exists;
    :func:`transduce.ops.orthogonal_frozen.frozen_update` is the parallel approximation.

    Raises ValueError for shapes that do not fit. Source: M. Karami and V. Mirrokni, Lattice, arXiv 2504.05646,
    sections 3 and 4, from the abstract and public summaries: constants may differ.
    """
    dtype, (keys, v, gates), fresh, s, resets = _prepare(keys, v, gates, fresh, s0, mask, resets)
    start = fresh.expand_as(s)
    restarts = (None,) * v.shape[1] if resets is None else resets.unbind(1)
    outputs: list[Tensor] = []
    for key, value, gate, restart in zip(keys.unbind(1), v.unbind(1), gates.unbind(1), restarts):
        if restart is not None:
            s = torch.where(restart[:, None, None, None], start, s)
        (read, write), (rate, decay) = key.unbind(2), gate.unbind(2)
        size = s.norm(dim=-1, keepdim=True).clamp_min(FLOOR)
        u = s / size
        error = value[..., None, :] - write[..., None, :] @ u  # (B,H,1,D)
        push = error - (u @ error.mT) * u if project else error
        s = decay[..., None, None] * s + rate[..., None, None] * write[..., None] / size * push
        u = s / s.norm(dim=-1, keepdim=True).clamp_min(FLOOR)
        outputs.append((read[..., None, :] @ u).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), s


def _prepare(
    keys: Tensor,
    v: Tensor,
    gates: Tensor,
    fresh: Tensor,
    s0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[torch.dtype, list[Tensor], Tensor, Tensor, Tensor | None]:
    """Output dtype; keys, v and (rate, decay) clean of masked steps; fresh and initial slots; resets that count.

    A rate of 0 and a decay of 1 leave the slots bit for bit as they are.
    """
    check_slots("orthogonal_update", keys, v, gates, fresh, s0)
    check_flags("orthogonal_update", v, mask, resets)
    work = work_dtype(keys, v, gates, fresh, *(() if s0 is None else (s0,)))
    fresh = fresh.to(work)
    s = fresh.expand(len(v), -1, -1, -1) if s0 is None else s0.to(work)
    keys, values, gates = (zero_masked(x, mask).to(work) for x in (keys, v, gates))
    rate, decay = gates.unbind(-1)
    gates = torch.stack((rate, torch.exp(decay)), -1)
    return v.dtype, [keys, values, gates], fresh, s, cuts(resets, mask)


# ---------------------------------------------------------------- compiled


@functools.cache
def _compiled() -> ModuleType:
    from . import orthogonal_numba  # imports numba

    return orthogonal_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import orthogonal_triton  # imports triton

    return orthogonal_triton


def _why_not_gpu(keys: Tensor, v: Tensor, *others: Tensor) -> str | None:
    reason, slots, width = why_not_triton(keys, v, *others), keys.shape[-1], v.shape[-1]
    if reason is None and (1 << max(slots - 1, 0).bit_length()) * (1 << max(width - 1, 0).bit_length()) > _MOST:
        return f"{slots} slots of {width} channels are more than the registers of a program hold"
    return reason


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, resets, project, *inputs):  # noqa: ANN001, ANN205 (torch's own signature)
        keeps = any(ctx.needs_input_grad)
        y, s, marks = kernels.forward(inputs, resets, project, keeps)
        ctx.save_for_backward(*inputs[:4], marks, resets)
        ctx.kernels, ctx.project = kernels, project
        return y, s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_s):  # noqa: ANN001, ANN205
        *saved, resets = ctx.saved_tensors
        grads = (grad_y.contiguous(), grad_s.contiguous())
        return None, None, None, *ctx.kernels.backward(grads, saved, resets, ctx.project)


@orthogonal_update.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    keys: Tensor,
    v: Tensor,
    gates: Tensor,
    fresh: Tensor,
    s0: Tensor | None = None,
    *,
    project: bool = True,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, inputs, fresh, s, resets = _prepare(keys, v, gates, fresh, s0, mask, resets)
    width = v.shape[-1]
    # Kernels take whole vectors. Zeros behind every slot and value stay zero and change no product.
    spare = -width % _compiled().lanes(s.dtype)
    keys, v, gates, fresh, s = (
        (F.pad(x, (0, spare)) if spare and padded else x).contiguous()
        for x, padded in zip((*inputs, fresh, s), (False, True, False, True, True))
    )
    restarts = None if resets is None else resets.contiguous()
    y, s = _Update.apply(_compiled(), restarts, project, keys, v, gates, fresh, s)
    return y[..., :width].to(dtype), s[..., :width].contiguous()


@orthogonal_update.backend("triton", when=on_tensors(_why_not_gpu), here=why_no_triton)
def _triton_backend(
    keys: Tensor,
    v: Tensor,
    gates: Tensor,
    fresh: Tensor,
    s0: Tensor | None = None,
    *,
    project: bool = True,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, inputs, fresh, s, resets = _prepare(keys, v, gates, fresh, s0, mask, resets)
    restarts = None if resets is None else resets.contiguous()
    y, s = _Update.apply(_gpu(), restarts, project, *(x.contiguous() for x in (*inputs, fresh, s)))
    return y.to(dtype), s


# ---------------------------------------------------------------- cases


def initial_slots(slots: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M,D) slots of norm 1, orthonormal where M <= D: rows of cosines, without anything random.

    Where there are more slots than dimensions, the same basis follows with other signs in its columns, and so on.
    """
    n = torch.arange(width, dtype=torch.float64)
    basis = F.normalize(torch.cos(torch.pi / width * (n + 0.5) * n[:, None]), dim=-1)
    blocks = [basis * torch.cos(0.5 + block * n * n).sign() if block else basis for block in range(-(-slots // width))]
    return torch.cat(blocks)[:slots].to(dtype)


@orthogonal_update.cases
def orthogonal_cases() -> Iterator[Case]:
    """Odd widths, more slots than dimensions, several stored states, decay, flags, without the projection."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def case(
        name: str,
        shape: tuple[int, int, int, int, int],
        *,
        decay: float = 0.1,
        start: bool = True,
        project: bool = True,
        flags: str = "",
        tiny: bool = False,
    ) -> Case:
        batch, steps, heads, slots, width = shape
        keys = torch.softmax(2 * normal(batch, steps, heads, 2, slots), -1)
        rate = torch.rand(batch, steps, heads, dtype=torch.float64, generator=generator)
        gates = torch.stack((rate, -decay * normal(batch, steps, heads).abs()), -1)
        fresh = initial_slots(slots, width, torch.float64) + 0.1 * normal(heads, slots, width)
        s0 = normal(batch, heads, slots, width) if start else None
        args = (keys, normal(batch, steps, heads, width), gates, fresh, s0)
        kwargs = {f: torch.rand(batch, steps, generator=generator) < 0.7 for f in flags.split()}
        if not project:
            kwargs["project"] = False
        grad = tuple(i for i, x in enumerate(args) if x is not None)
        return Case(name, args, kwargs, grad=grad, tiny=tiny)

    yield case("tiny", (2, 4, 2, 2, 3), tiny=True)
    yield case("tiny, no state", (2, 4, 1, 3, 2), start=False, tiny=True)
    yield case("tiny, mask and resets", (2, 5, 1, 2, 3), flags="mask resets", tiny=True)
    yield case("tiny, no projection", (1, 4, 2, 2, 3), project=False, flags="resets", tiny=True)
    yield case("one step", (3, 1, 2, 4, 5))
    yield case("odd, no decay", (2, 37, 2, 5, 19), decay=0.0)
    yield case("whole vectors", (2, 33, 2, 4, 16), start=False)
    yield case("more slots than dimensions", (2, 21, 1, 19, 6))
    yield case("mask", (3, 35, 2, 4, 5), flags="mask")
    yield case("mask and resets", (2, 50, 2, 4, 5), flags="mask resets")
    yield case("no projection", (2, 35, 2, 4, 7), project=False)
