"""The generalised delta rule: a decay for every channel of the keys, and one vector to read the old content with and
another to take it away. RWKV-7's memory; with one decay a head and both vectors the key, gated DeltaNet's."""

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
from .matrix_state import check_flags, check_inputs, cuts, initial, work_dtype
from .tracing import why_no_triton, why_not_kernel, why_not_triton

_WIDEST = 256
"""Channels of the keys that a kernel on a GPU takes."""


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, removal: Tensor, s0: Tensor | None) -> None:
    check_inputs("generalised_delta_rule", q, k, v, s0)
    if log_decay.shape != q.shape:
        raise ValueError(
            f"generalised_delta_rule needs log_decay {tuple(q.shape)}, got {tuple(log_decay.shape)}"
        )
    pair = (*q.shape[:3], 2, q.shape[3])
    if removal.shape != pair:
        raise ValueError(f"generalised_delta_rule needs removal {pair}, got {tuple(removal.shape)}")


@op
def generalised_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    removal: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = (diag(w_t) - r_t e_t^T) S_(t-1) + k_t v_t^T,  y_t = S_t^T q_t, for each row and head.

    w_t = exp(log_decay_t) fades every channel of the keys on its own; e_t asks the memory what it holds, and r_t is
    where that is taken away. The state has keys as rows (K,V); papers that write S (V,K) mean its transpose. With
    e = k', r = w b k' and k = b k' of a key k' of norm 1 and one w a head it is :func:`transduce.ops.delta.delta_rule`.

    Args:
        q, k: (B,T,H,K).
        v: (B,T,H,V).
        log_decay: (B,T,H,K), at most 0; -inf forgets the channel.
        removal: (B,T,H,2,K): e, then r. The memory stays bounded where diag(w) - r e^T has no singular value above 1.
        s0: (B,H,K,V), None means zero.
        mask: (B,T) bool. False: the state is kept, what the inputs hold there (NaN included) has no influence, and
            the output there is unspecified.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.

    Returns:
        y (B,T,H,V) in the dtype of ``v`` and the state behind the last step (B,H,K,V), which is float32, or float64
        where an input is float64.

    Backends, in order: ``numba`` (CPU: the memory of a head in the first-level cache; backward from memories stored
    every 16th step), ``triton`` (CUDA devices, keys of at most 256 channels: the memory in registers; backward from
    memories stored every 32nd step), ``reference``. The first two can be differentiated once only. ``.matrix`` gives
    the implied token-to-token matrix.

    Raises ValueError for shapes that do not fit. Source: B. Peng et al., RWKV-7 "Goose", arXiv 2503.14456, section 3.
    """
    dtype, inputs, state, resets = _prepare((q, k, v, log_decay, removal), s0, mask, resets)
    restarts = (None,) * v.shape[1] if resets is None else resets.unbind(1)
    outputs: list[Tensor] = []
    for q_t, k_t, v_t, w_t, pair, restart in zip(*(x.unbind(1) for x in inputs), restarts):
        if restart is not None:
            state = torch.where(restart[:, None, None, None], 0, state)
        e_t, r_t = pair.unbind(2)
        held = e_t[..., None, :] @ state  # (B,H,1,V)
        state = w_t[..., None] * state - r_t[..., None] * held + k_t[..., None] * v_t[..., None, :]
        outputs.append((q_t[..., None, :] @ state).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), state


def _prepare(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    s0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[torch.dtype, list[Tensor], Tensor, Tensor | None]:
    """Output dtype; q, k, v, decay, removal clean of masked steps; initial state; resets that count.

    A masked step has decay 1 and zeros elsewhere, which leaves the state bit for bit as it is.
    """
    q, k, v, log_decay, removal = inputs
    _check(q, k, v, log_decay, removal, s0)
    check_flags("generalised_delta_rule", v, mask, resets)
    work = work_dtype(*inputs, *(() if s0 is None else (s0,)))
    state = initial(q, v, s0, work)
    q, k, values, log_decay, removal = (zero_masked(x, mask).to(work) for x in inputs)
    clean = [q, k, values, torch.exp(log_decay), removal]
    return v.dtype, clean, state, cuts(resets, mask)


# ---------------------------------------------------------------- compiled


@functools.cache
def _compiled() -> ModuleType:
    from . import delta_numba  # imports numba

    return delta_numba


@functools.cache
def _gpu() -> ModuleType:
    from . import delta_triton  # imports triton

    return delta_triton


def why_not_gpu(*tensors: Tensor) -> str | None:
    """None when the Triton kernels can serve these tensors, q the first of them, else the reason."""
    reason, width = why_not_triton(*tensors), tensors[0].shape[-1]
    if reason is None and width > _WIDEST:
        return f"keys of {width} channels are too wide for the registers of a program, which takes {_WIDEST}"
    return reason


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, s0, resets, *inputs):  # noqa: ANN001, ANN205 (torch's own signature)
        y, s, marks = kernels.forward(inputs, s0, resets, any(ctx.needs_input_grad))
        ctx.save_for_backward(*inputs, marks, resets)
        ctx.kernels = kernels
        return y, s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_s):  # noqa: ANN001, ANN205
        *inputs, marks, resets = ctx.saved_tensors
        *found, ds0 = ctx.kernels.backward(grad_y.contiguous(), grad_s.contiguous(), inputs, marks, resets)
        return None, ds0, None, *found


@generalised_delta_rule.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    removal: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, inputs, state, resets = _prepare((q, k, v, log_decay, removal), s0, mask, resets)
    width = q.shape[-1]
    # Kernels take whole vectors of key channels, a row for each of the values. Zeros in spare channels stay zero.
    spare = -width % _compiled().lanes(state.dtype)
    rows = state.mT
    q, k, v, w, removal, rows = (
        (F.pad(x, (0, spare)) if spare and padded else x).contiguous()
        for x, padded in zip((*inputs, rows), (True, True, False, True, True, True))
    )
    restarts = None if resets is None else resets.contiguous()
    y, rows = _Rule.apply(_compiled(), rows, restarts, q, k, v, w, removal)
    return y.to(dtype), rows[..., :width].mT.contiguous()


@generalised_delta_rule.backend("triton", when=on_tensors(why_not_gpu), here=why_no_triton)
def _triton_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    removal: Tensor,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, inputs, state, resets = _prepare((q, k, v, log_decay, removal), s0, mask, resets)
    restarts = None if resets is None else resets.contiguous()
    y, state = _Rule.apply(_gpu(), state.contiguous(), restarts, *(x.contiguous() for x in inputs))
    return y.to(dtype), state


def generalised_delta_matrix(
    q: Tensor,
    k: Tensor,
    log_decay: Tensor,
    removal: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,H,T,T) with y[:, t, h] = sum_s M[:, h, t, s] v[:, s, h] for a zero initial state.

    Column s is the answer to a value at step s alone, and that is how it is computed: values of width T that are a
    unit impulse each. Costs O(B H T^2) memory: for analysis and tests.
    """
    batch, steps, heads = q.shape[:3]
    impulses = torch.eye(steps, dtype=q.dtype, device=q.device)[None, :, None].expand(batch, -1, heads, -1)
    y, _ = generalised_delta_rule(q, k, impulses, log_decay, removal, mask=mask, resets=resets)
    return y.movedim(2, 1)


generalised_delta_rule.matrix = generalised_delta_matrix


@generalised_delta_rule.cases
def generalised_delta_cases() -> Iterator[Case]:
    """Odd and whole widths, several stored states, fast decay, flags; transitions of norm at most one, and RWKV-7's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def case(
        name: str,
        shape: tuple[int, int, int, int, int],
        *,
        decay: float = 0.1,
        start: bool = True,
        flags: str = "",
        tiny: bool = False,
    ) -> Case:
        batch, steps, heads, width, values = shape
        q, k, e, rate = (normal(batch, steps, heads, width) for _ in range(4))
        e = F.normalize(e, dim=-1)
        removal = torch.stack((e, 0.3 * torch.sigmoid(rate) * e), 3)
        log_decay = -decay * normal(batch, steps, heads, width).abs()
        s0 = normal(batch, heads, width, values) if start else None
        args = (q, k, normal(batch, steps, heads, values), log_decay, removal, s0)
        kwargs = {f: torch.rand(batch, steps, generator=generator) < 0.7 for f in flags.split()}
        grad = tuple(i for i, x in enumerate(args) if x is not None)
        return Case(name, args, kwargs, grad=grad, tiny=tiny, scale=3.0 * width**0.5)

    yield case("tiny", (2, 4, 2, 2, 3), tiny=True)
    yield case("tiny, no state", (1, 5, 2, 3, 2), start=False, tiny=True)
    yield case("tiny, mask and resets", (2, 5, 1, 2, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 5, 4))
    yield case("odd", (2, 37, 2, 19, 7))
    yield case("whole vectors", (2, 33, 2, 16, 16), start=False)
    yield case("mask", (3, 35, 2, 5, 4), flags="mask")
    yield case("mask and resets", (2, 50, 2, 5, 4), flags="mask resets")
    yield case("fast decay", (2, 35, 2, 5, 4), decay=300.0)
