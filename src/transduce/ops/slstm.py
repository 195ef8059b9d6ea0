"""The LSTM with exponential gates (sLSTM), cut at the recurrent part like the networks of :mod:`transduce.ops.rnn`."""

from __future__ import annotations

from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op
from .rnn import (
    _check,
    _check_steps,
    _dtypes,
    _effective,
    _fresh,
    _held,
    _stack,
    _steps,
    _why_not_numba,
    recurrent_product,
)
from .rnn_gates import why_not_gpu
from .rnn_loop import Product, columns, fold, low_dtype, unfold, zero_before
from .tracing import why_no_triton, why_traced


@op
def slstm(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Long short-term memory with an exponential input gate, kept in range by the running maximum m::

        i, f, z, o = pre + U h        l = log(sigmoid(f)) + m
        m' = max(i, l)    (i where n = 0: the history begins)
        c' = exp(l - m') * c + exp(i - m') * tanh(z)
        n' = exp(l - m') * n + exp(i - m')              h' = sigmoid(o) * c' / n'

    pre (B,T,4D) in the order i, f, z, o; weight (4D,D), or (4D,K) for D/K heads; h0, c0, n0, m0 (B,D), all zero at the
    start -> h (B,T,D) and the last c, n, m (B,D). n' is at least 1, since one of the two exponentials is.

    ``mask``, ``resets`` (all four states become zero) and dtypes as in :mod:`transduce.ops.rnn`. Backends, in order:
    ``numba`` (float32 on the CPU), ``triton`` (CUDA devices, for the heads that :mod:`transduce.ops.rnn` names),
    ``loop`` (all with an analytic backward, once), ``reference``. Raises ValueError for shapes that do not fit. Source:
    M. Beck et al., xLSTM, arXiv 2405.04517, section 2.2 and appendix A; the heads: FlashRNN, arXiv 2412.07752, section
    2.
    """
    _check("slstm", 4, pre, weight, (h0, c0, n0, m0))
    _check_steps("slstm", pre, mask, resets)
    dtype, work = _dtypes(pre, weight, h0, c0, n0, m0)
    pre, weight = zero_masked(pre, mask).to(work), weight.to(work)
    h, c, n, m = (s.to(work) for s in (h0, c0, n0, m0))
    outputs: list[Tensor] = []
    for p, valid, reset in zip(pre.unbind(1), _steps(mask, pre.shape[1]), _steps(resets, pre.shape[1])):
        before = [_fresh(s, reset) for s in (h, c, n, m)]
        after = slstm_step(p, weight, *before)
        h, c, n, m = (_held(new, old, valid) for new, old in zip(after, (h, c, n, m)))
        outputs.append(h)
    return _stack(outputs, h, dtype), c.to(dtype), n.to(dtype), m.to(dtype)


def slstm_step(
    pre: Tensor, weight: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of :func:`slstm`: pre (B,4D) -> h, c, n, m."""
    i, f, z, o = (pre + recurrent_product(h, weight)).chunk(4, -1)
    kept = logsigmoid(f) + m
    begins = n == 0
    m = torch.where(begins | (i >= kept), i, kept)
    # Where the history begins, l - m has no bound, and what its exponential would multiply is zero.
    write, keep = torch.exp(i - m), torch.exp(torch.where(begins, 0, kept - m)).masked_fill(begins, 0)
    c, n = keep * c + write * torch.tanh(z), keep * n + write
    return torch.sigmoid(o) * c / n, c, n, m


def _steps_forward(buffers, gates, kept_for_back, product, flags) -> None:  # noqa: ANN001
    """All steps: states[0] to the others, and pre-activations to what backward needs."""
    (hs, cs, ns, ms), (wins, closing), (restarts, held) = buffers, kept_for_back, flags
    for t, whole in enumerate(gates.unbind(0)):
        old = [hs[t], cs[t], ns[t], ms[t]]
        h, c, n, m = old if restarts is None else (torch.where(restarts[t], 0, s) for s in old)
        product.add_forward(whole, h)
        i, f, z, o = whole.chunk(4, 1)
        kept = logsigmoid(f) + m
        torch.sigmoid(-f, out=closing[t])
        begins = n == 0
        win = torch.logical_or(begins, i >= kept, out=wins[t])
        torch.where(win, i, kept, out=ms[t + 1])
        # The gates' places take what backward needs: exp(i - m'), exp(l - m'), tanh(z), sigmoid(o).
        i.sub_(ms[t + 1]).exp_()
        f.copy_(kept.sub_(ms[t + 1]).exp_().masked_fill_(begins, 0))
        z.tanh_()
        o.sigmoid_()
        torch.mul(f, c, out=cs[t + 1]).addcmul_(i, z)
        torch.addcmul(i, f, n, out=ns[t + 1])
        torch.div(o * cs[t + 1], ns[t + 1], out=hs[t + 1])
        if held is not None:
            for buffer, kept_state in zip(buffers, (h, c, n, m)):
                torch.where(held[t], kept_state, buffer[t + 1], out=buffer[t + 1])


def _steps_back(grads, saved, kept_for_back, product, flags) -> list[Tensor]:  # noqa: ANN001
    """All steps back: ``d``, the gradients by the pre-activations, is filled; those by the first states come back."""
    (dh_out, d, (dh, dc, dn, dm)), (hs, ns, read_c, read_n, gates) = grads, saved
    (wins, closing), (restarts, held), width = kept_for_back, flags, hs.shape[-1]
    write, keep, z, o = gates.split(width, -1)
    for t in reversed(range(len(gates))):
        if dh_out is not None:
            dh = dh + dh_out[t]
        passing = (dh, dc, dn, dm)
        by_n = dh / ns[t + 1]
        of_c, of_n = torch.addcmul(dc, by_n, o[t]), torch.addcmul(dn, by_n, hs[t + 1], value=-1)
        of_i = torch.addcmul(of_n, of_c, z[t]).mul_(write[t])
        of_l = (of_c * read_c[t]).addcmul_(of_n, read_n[t]).mul_(keep[t])
        of_m = dm - of_i - of_l
        torch.add(of_i, torch.where(wins[t], of_m, 0), out=d[t, :, :width])
        of_l += torch.where(wins[t], 0, of_m)
        torch.mul(of_l, closing[t], out=d[t, :, width : 2 * width])
        torch.mul(of_c * write[t], 1 - z[t] * z[t], out=d[t, :, 2 * width : 3 * width])
        torch.mul(dh * hs[t + 1], 1 - o[t], out=d[t, :, 3 * width :])
        dc, dn, dm = of_c * keep[t], of_n * keep[t], of_l
        if held is not None:
            d[t].masked_fill_(held[t], 0)
            dc, dn, dm = (torch.where(held[t], p, s) for p, s in zip(passing[1:], (dc, dn, dm)))
        dh = torch.zeros_like(dh) if held is None else torch.where(held[t], passing[0], 0)
        product.add_backward(dh, d[t])
        if restarts is not None:
            dh, dc, dn, dm = (s.masked_fill(restarts[t], 0) for s in (dh, dc, dn, dm))
    return [dh, dc, dn, dm]


class _Loop(torch.autograd.Function):
    """The loop, of torch operations or in the kernels of an ``engine``. Backward: with every step's d = dL/d(h', c', n',
    m') in full, the gradients of i and l are those through the exponentials plus, for the larger of the two, that of
    m'."""

    @staticmethod
    def forward(ctx, pre, weight, *rest):  # noqa: ANN001, ANN205 (torch's own signature)
        h0, c0, n0, m0, mask, resets, work, engine = rest
        low, width = low_dtype(pre), weight.shape[1]
        heads = h0.shape[1] // width
        gates = fold(zero_masked(pre, mask), work, width, heads)
        steps, rows = gates.shape[:2]
        buffers = torch.empty(4, steps + 1, rows, width, dtype=work, device=pre.device)
        hs, cs, ns, ms = buffers
        for buffer, first in zip(buffers, (h0, c0, n0, m0)):
            buffer[0] = fold(first, work, width, heads)
        wins = torch.empty(steps, rows, width, dtype=torch.bool, device=pre.device)
        closing = torch.empty_like(buffers[0, 1:])
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        flags = (restarts, held)
        if engine is None:
            _steps_forward(buffers, gates, (wins, closing), Product(weight, work, low, heads), flags)
        else:
            engine.steps(buffers, gates, (wins, closing), weight.to(work).contiguous(), flags, heads)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(buffers, gates, wins, closing, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = [x.dtype for x in (pre, weight, h0, c0, n0, m0)], low, heads
        ctx.engine = engine
        return unfold(hs[1:], width, heads), *(unfold(s[-1].clone(), width, heads) for s in (cs, ns, ms))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, *grads):  # noqa: ANN001, ANN205
        buffers, gates, wins, closing, weight, restarts, held = ctx.saved_tensors
        hs, cs, ns, _ = buffers
        heads, width, work = ctx.heads, weight.shape[1], hs.dtype
        product = Product(weight, work, ctx.low, heads)
        read_h, read_c, read_n = (zero_before(s[:-1], restarts) for s in (hs, cs, ns))
        dh_out = None if grad_h is None else fold(grad_h, work, width, heads)
        dc, dn, dm = (torch.zeros_like(hs[0]) if g is None else fold(g, work, width, heads) for g in grads)
        dh, d = torch.zeros_like(hs[0]), torch.empty_like(gates)
        saved, by_states = (hs, ns, read_c, read_n, gates), [dh, dc, dn, dm]
        if ctx.engine is None:
            by_states = _steps_back((dh_out, d, by_states), saved, (wins, closing), product, (restarts, held))
        else:
            grads = (torch.zeros_like(closing) if dh_out is None else dh_out, d, by_states)
            whole = weight.to(work).contiguous()
            ctx.engine.steps_back(grads, saved, (wins, closing), whole, (restarts, held), heads)
        found = [unfold(d, width, heads) if ctx.needs_input_grad[0] else None, None]
        if ctx.needs_input_grad[1]:
            found[1] = product.weight_gradient(d, read_h, weight)
        found += [unfold(s, width, heads) for s in by_states]
        return *(None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes)), None, None, None, None


@slstm.backend("numba", when=on_tensors(_why_not_numba))
def _slstm_numba(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import lstm_numba

    _check("slstm", 4, pre, weight, (h0, c0, n0, m0))
    _check_steps("slstm", pre, mask, resets)
    dtype, _ = _dtypes(pre, weight, h0, c0, n0, m0)
    found = lstm_numba.SLSTM.apply(pre, weight, h0, c0, n0, m0, mask, _effective(mask, resets))
    return tuple(x.to(dtype) for x in found)


def _taken(
    kernels: ModuleType | None, inputs: tuple[Tensor, ...], mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``kernels`` takes all steps at once; None: one torch operation after the other."""
    pre, weight, *states = inputs
    _check("slstm", 4, pre, weight, tuple(states))
    _check_steps("slstm", pre, mask, resets)
    dtype, work = _dtypes(*inputs)
    found = _Loop.apply(*inputs, mask, _effective(mask, resets), work, kernels)
    return tuple(x.to(dtype) for x in found)


@slstm.backend("triton", when=on_tensors(why_not_gpu), here=why_no_triton)
def _slstm_triton(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import slstm_triton

    return _taken(slstm_triton, (pre, weight, h0, c0, n0, m0), mask, resets)


@slstm.backend("loop", when=on_tensors(why_traced))
def _slstm_loop(
    pre: Tensor,
    weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _taken(None, (pre, weight, h0, c0, n0, m0), mask, resets)


@slstm.cases
def slstm_cases() -> Iterator[Case]:
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str, batch: int, steps: int, width: int, heads: int = 1, *, flags: str = "", tiny=False, scale=1.0
    ) -> Case:
        pre, weight = normal(batch, steps, 4 * width) * scale, normal(4 * width, width // heads) / width**0.5
        states = (normal(batch, width), normal(batch, width), 1 + normal(batch, width).abs(), normal(batch, width))
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.6 for f in flags.split()}
        return Case(name, (pre, weight, *states), kwargs, grad=tuple(range(6)), tiny=tiny)

    yield case("tiny", 2, 3, 2, tiny=True)
    yield case("tiny, heads, mask and resets", 2, 4, 4, 2, flags="mask resets", tiny=True)
    yield case("one step", 5, 1, 7)
    yield case("one row", 1, 19, 11)
    yield case("odd, heads", 7, 23, 15, 3, flags="mask")
    yield case("resets", 6, 17, 9, flags="resets")
    yield case("large gates", 3, 9, 5, flags="mask", scale=30.0)
    first = case("", 4, 12, 6, 2)
    zeros = tuple(torch.zeros(4, 6, dtype=torch.float64) for _ in range(4))
    yield Case("from the beginning", (*first.args[:2], *zeros), grad=(0, 1))
