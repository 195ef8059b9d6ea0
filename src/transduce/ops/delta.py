"""The delta rule: a matrix memory that corrects what a key holds instead of adding to it. DeltaNet, and with a
decay the gated delta rule. :mod:`transduce.ops.delta_general` has the form with a decay a channel."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op, several_steps
from .matrix_state import check_flags, check_inputs, chunks, initial, work_dtype
from .retention import _decays, _gates, over_chunks
from .tracing import why_no_triton, why_not_kernel


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, s0: Tensor | None
) -> None:
    check_inputs("delta_rule", q, k, v, s0)
    for label, x in (("beta", beta), ("log_decay", log_decay)):
        if x is not None and x.shape != q.shape[:3]:
            raise ValueError(f"delta_rule needs {label} (B,T,H), got {tuple(x.shape)} for q {tuple(q.shape)}")


@op
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T,  y_t = S_t^T q_t, for each row and head.

    In words: the memory fades by a_t = exp(log_decay_t), is asked what it holds under k_t, and is moved by
    b_t towards holding v_t there. With |k_t| = 1 and b_t = 1 a read with k_t then gives exactly v_t; b_t
    between 1 and 2 overshoots (a negative eigenvalue), which lets a memory toggle. The state has keys as
    rows (K,V); papers that write S (V,K) mean its transpose.

    Args:
        q, k: (B,T,H,K). Keys should have norm 1: b_t |k_t|^2 above 2 makes the memory grow without bound.
        v: (B,T,H,V).
        beta: b, (B,T,H), in [0, 2].
        log_decay: natural logarithm of a, (B,T,H), at most 0; -inf forgets everything; None is no decay.
        s0: (B,H,K,V), None means zero.
        mask: (B,T) bool. False: the state is kept, what the inputs hold there (NaN included) has no influence,
            and the output there is unspecified.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.

    Returns:
        y (B,T,H,V) in the dtype of ``v`` and the state behind the last step (B,H,K,V), which is float32, or
        float64 where an input is float64.

    Backends, in order: ``numba`` and ``triton`` (CPU and CUDA devices: the kernels of
    :mod:`transduce.ops.delta_general`; can be differentiated once only), ``chunked`` (any device: in chunks of 64
    steps all corrections are one triangular solve and the rest products of matrices), ``reference`` (used below 4
    steps, where it is cheaper).
    ``delta_rule.matrix`` gives the implied token-to-token matrix.

    Raises ValueError for shapes that do not fit. Source: I. Schlag et al., Linear Transformers Are Secretly
    Fast Weight Programmers, ICML 2021, section 4.2; S. Yang et al., arXiv 2406.06484, section 3 (chunks);
    S. Yang et al., Gated Delta Networks, arXiv 2412.06464, section 3 (decay); R. Grazzi et al., arXiv
    2411.12537 (b up to 2).
    """
    dtype, work, (q, k, v, beta), decay, state = _prepare(q, k, v, beta, log_decay, s0, (mask, resets))
    g, cut = _gates(decay, q.shape[:2], mask, resets, work)
    keep = torch.where(cut, 0, torch.exp(g))
    outputs: list[Tensor] = []
    for q_t, k_t, v_t, b_t, keep_t, cut_t in zip(*(x.unbind(1) for x in (q, k, v, beta, keep, cut))):
        state = keep_t[..., None, None] * torch.where(cut_t[..., None, None], 0, state)
        held = (k_t[..., None, :] @ state).squeeze(-2)
        state = state + k_t[..., :, None] * (b_t[..., None] * (v_t - held))[..., None, :]
        outputs.append((q_t[..., None, :] @ state).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)).to(dtype), state


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    s0: Tensor | None,
    flags: tuple[Tensor | None, Tensor | None],
) -> tuple[torch.dtype, torch.dtype, list[Tensor], Tensor, Tensor]:
    """Output dtype, working dtype, (q, k, v, beta) clean of masked steps, log decay, initial state."""
    _check(q, k, v, beta, log_decay, s0)
    check_flags("delta_rule", q, *flags)
    work = work_dtype(q, k, v, beta, *(x for x in (log_decay, s0) if x is not None))
    state = initial(q, v, s0, work)
    decay = q.new_zeros(q.shape[2], dtype=work) if log_decay is None else log_decay
    return v.dtype, work, [zero_masked(x, flags[0]).to(work) for x in (q, k, v, beta)], decay, state


def _generalised(
    backend: str,
    args: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A kernel of the generalised delta rule, with e = k, r = a b k and the key b k."""
    from .delta_general import generalised_delta_rule  # it stands on this module

    dtype, _, (q, k, v, beta), decay, state = _prepare(*args, (mask, resets))
    decay = zero_masked(decay, mask).to(q.dtype) if decay.dim() == 3 else decay.expand_as(beta)
    written = beta[..., None] * k
    removal = torch.stack((k, torch.exp(decay)[..., None] * written), 3)
    y, state = generalised_delta_rule.run(
        backend, q, written, v, decay[..., None].expand_as(q), removal, state, mask=mask, resets=resets
    )
    return y.to(dtype), state


def _why_not_gpu(*tensors: Tensor) -> str | None:
    from .delta_general import why_not_gpu  # it stands on this module

    return why_not_gpu(*tensors)


@delta_rule.backend("numba", when=on_tensors(why_not_kernel))
def _delta_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _generalised("numba", (q, k, v, beta, log_decay, s0), mask, resets)


@delta_rule.backend("triton", when=on_tensors(_why_not_gpu), here=why_no_triton)
def _delta_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _generalised("triton", (q, k, v, beta, log_decay, s0), mask, resets)


@delta_rule.backend("chunked", when=several_steps(4, 4))
def _delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    s0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, work, inputs, decay, state = _prepare(q, k, v, beta, log_decay, s0, (mask, resets))
    y, state = over_chunks(_run_chunks, inputs, decay, (mask, resets), state)
    return y.to(dtype), state


def _corrections(k: Tensor, beta: Tensor, within: Tensor, right: Tensor) -> Tensor:
    """U with u_i = r_i - b_i sum_{j<i} within_ij (k_i . k_j) u_j: (B,H,N,C,*) from r of that shape.

    What step i writes under its key depends on what the steps before it wrote: a triangular system.
    """
    lower = (beta[..., None] * (k @ k.mT) * within).tril(-1)
    return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)


def _run_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decays: tuple[Tensor, Tensor, Tensor, Tensor],
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Whole chunks: (B,H,N,C,K) and an entering state -> outputs (B,N*C,H,V) and the state behind them.

    A chunk writes U = U_0 - W S, with S the state that enters it: U_0 and W of all chunks are solved for at
    once, and only two products a chunk are left to do one after the other.
    """
    within, incoming, outgoing, through = decays
    right = torch.cat((v, k * incoming[..., None]), -1) * beta[..., None]
    alone, reads = _corrections(k, beta, within, right).split((v.shape[-1], k.shape[-1]), -1)
    keys = (k * outgoing[..., None]).mT
    fades = through.expand(-1, -1, q.shape[2])[..., None, None].unbind(2)
    entering: list[Tensor] = []
    written: list[Tensor] = []
    for fade, own, read, key in zip(fades, alone.unbind(2), reads.unbind(2), keys.unbind(2)):
        entering.append(state)
        u = own - read @ state
        state = torch.addcmul(key @ u, fade, state)
        written.append(u)
    y = ((q @ k.mT) * within) @ torch.stack(written, 2)
    y = y + (q * incoming[..., None]) @ torch.stack(entering, 2)
    return y.movedim(1, 3).flatten(1, 2), state


def delta_matrix(
    q: Tensor,
    k: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,H,T,T) with y[:, t, h] = sum_s M[:, h, t, s] v[:, s, h] for a zero initial state.

    M = (Q K^T * decays) (I + tril(diag(b) K K^T * decays, -1))^-1 diag(b), lower triangular. Arguments as for
    :func:`delta_rule`. Costs O(B H T^2) memory: for analysis and tests.
    """
    _, work, (q, k, _, beta), decay, _ = _prepare(q, k, k, beta, log_decay, None, (mask, resets))
    batch, steps = q.shape[:2]
    within, *_ = _decays(decay, mask, resets, (batch, steps), steps, work)
    q, k, beta = (chunks(x, steps) for x in (q, k, beta))
    return (((q @ k.mT) * within) @ _corrections(k, beta, within, torch.diag_embed(beta))).squeeze(2)


delta_rule.matrix = delta_matrix


@delta_rule.cases
def delta_cases() -> Iterator[Case]:
    """Ragged tails, several chunks, with and without decay, cuts, keys that repeat, overshooting."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def case(
        name: str,
        shape: tuple[int, int, int, int, int],
        *,
        decay: float | None = 0.1,
        start: bool = True,
        most: float = 1.0,
        flags: str = "",
        tiny: bool = False,
    ) -> Case:
        batch, steps, heads, width, values = shape
        q, k = (normal(batch, steps, heads, width) for _ in range(2))
        k = k / k.norm(dim=-1, keepdim=True)
        beta = most * torch.rand(batch, steps, heads, dtype=torch.float64, generator=generator)
        log_decay = None if decay is None else -decay * normal(batch, steps, heads).abs()
        s0 = normal(batch, heads, width, values) if start else None
        args = (q, k, normal(batch, steps, heads, values), beta, log_decay, s0)
        kwargs = {f: torch.rand(batch, steps, generator=generator) < 0.7 for f in flags.split()}
        grad = tuple(i for i, x in enumerate(args) if x is not None)
        return Case(name, args, kwargs, grad=grad, tiny=tiny, scale=3.0 * width**0.5)

    yield case("tiny", (2, 5, 2, 2, 3), tiny=True)
    yield case("tiny, no decay, overshooting", (1, 6, 2, 2, 2), decay=None, most=2.0, tiny=True)
    yield case("tiny, mask and resets", (2, 5, 1, 2, 2), flags="mask resets", tiny=True)
    yield case("one step", (3, 1, 2, 5, 4))
    yield case("ragged tail", (2, 151, 2, 7, 5))
    yield case("whole chunks, no state", (2, 128, 3, 8, 8), decay=None, start=False)
    yield case("overshooting", (2, 77, 2, 8, 8), decay=None, most=2.0)
    yield case("mask", (3, 99, 2, 5, 5), flags="mask")
    yield case("resets, no decay", (2, 99, 2, 5, 5), flags="resets", decay=None)
    yield case("mask and resets", (2, 70, 2, 5, 5), flags="mask resets")
    yield case("fast decay", (2, 90, 2, 5, 5), decay=300.0)
    same = case("", (2, 70, 2, 5, 5), decay=None).args
    yield Case("one key", (same[0], same[1][:, :1].expand_as(same[1]), *same[2:]), grad=(0, 2, 3, 5), scale=6.0)
    q, k, v, beta, log_decay, s0 = case("", (2, 90, 2, 5, 5)).args
    cut = torch.where(torch.rand(2, 90, 2, generator=generator) < 0.1, -torch.inf, log_decay)
    yield Case("decay of -inf", (q, k, v, beta, cut, s0), grad=(0, 1, 2, 3, 5), scale=6.0)
