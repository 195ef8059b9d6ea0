"""Recurrent loops with an analytic backward, for :mod:`transduce.ops.rnn`.

Buffers are time-major, so a step is one contiguous block; the heads of a block-diagonal recurrence are rows of it,
(T, H*B, K) with all rows of a head together, so everything but the product is the same for any number of heads. Forward keeps the gates; backward first turns them
into factors for all time at once (few large elementwise operations), then each step is a multiplication by
the gradient of the state and one product with the weights; the gradient of the weights is a single product
over all steps at the end. A masked step is written into the pre-activations (a gate at exactly 0 or 1), so it
costs nothing.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

INF = float("inf")


def fold(x: Tensor, work: torch.dtype, width: int, heads: int) -> Tensor:
    """(B,T,P) or (B,P) of whole layers -> a fresh (T,H*B,P/H) or (H*B,P/H) of heads. ``width``: that of a head."""
    shape = x.shape
    x = x.unflatten(-1, (-1, heads, width)).movedim(-2, 0)
    if len(shape) == 3:
        x = x.movedim(2, 0)
    order = (*shape[1:2], heads * shape[0], shape[-1] // heads)[3 - len(shape) :]
    return torch.empty(x.shape, dtype=work, device=x.device).copy_(x).view(order)


def unfold(x: Tensor, width: int, heads: int, *, into: Tensor | None = None) -> Tensor:
    """The way back: (T,H*B,P/H) -> (B,T,P), (H*B,P/H) -> (B,P); ``into`` a place of that shape where one is given."""
    x = x.unflatten(-2, (heads, -1)).unflatten(-1, (-1, width))  # (T,H,B,G,K)
    order = (2, 0, 3, 1, 4) if x.dim() == 5 else (1, 2, 0, 3)
    x = x.permute(order)
    if into is None:
        return x.contiguous().flatten(-3)
    return into.unflatten(-1, x.shape[-3:]).copy_(x)


def held_pre(
    x: Tensor, mask: Tensor | None, work: torch.dtype, hold: Sequence[float], heads: int = 1
) -> Tensor:
    """Time-major pre-activations; masked steps hold ``hold``, one number a gate."""
    buffer = fold(x, work, x.shape[2] // (len(hold) * heads), heads)
    if mask is not None:
        gates = buffer.unflatten(2, (len(hold), -1))
        held = torch.tensor(hold, dtype=work, device=x.device)[:, None]
        torch.where(columns(mask, heads)[..., None], gates, held, out=gates)
    return buffer


def columns(flags: Tensor | None, heads: int = 1, *, invert: bool = False) -> Tensor | None:
    """(B,T) bool -> (T,H*B,1), optionally negated."""
    return None if flags is None else (~flags if invert else flags).t().repeat(1, heads)[..., None]


class Product:
    """The step's product with the (G*D,K) weights, in the dtype ``low`` (autocast's) where that is given.

    With H = D/K heads, head h of each gate reads head h of the state: rows (H*B,K) -> (H*B,G*K).
    """

    def __init__(self, weight: Tensor, work: torch.dtype, low: torch.dtype | None, heads: int = 1) -> None:
        self.low, self.heads = low, heads
        self._multiply = torch.mm if heads == 1 else torch.bmm
        weight = weight.to(low or work)
        if heads > 1:
            weight = by_head(weight, heads)
        self.weight = weight
        self.transposed = self.weight.mT

    def _by_head(self, x: Tensor) -> Tensor:
        return x if self.heads == 1 else x.view(self.heads, -1, x.shape[1])

    def add_forward(self, target: Tensor, h: Tensor) -> None:
        """target (B,P) += h W^T"""
        target, h = self._by_head(target), self._by_head(h)
        if self.low is not None:
            target.add_(torch.matmul(h.to(self.low), self.transposed))
        elif self.heads == 1:
            target.addmm_(h, self.transposed)
        else:
            target.baddbmm_(h, self.transposed)

    def forward_into(self, target: Tensor, h: Tensor) -> None:
        """target (B,P) = h W^T"""
        target, h = self._by_head(target), self._by_head(h)
        if self.low is None:
            self._multiply(h, self.transposed, out=target)
        else:
            target.copy_(torch.matmul(h.to(self.low), self.transposed))

    def backward_into(self, target: Tensor, d: Tensor) -> None:
        """target (B,D) = d W"""
        target, d = self._by_head(target), self._by_head(d)
        if self.low is None:
            self._multiply(d, self.weight, out=target)
        else:
            target.copy_(torch.matmul(d.to(self.low), self.weight))

    def add_backward(self, target: Tensor, d: Tensor) -> None:
        """target (B,D) += d W"""
        target, d = self._by_head(target), self._by_head(d)
        if self.low is not None:
            target.add_(torch.matmul(d.to(self.low), self.weight))
        elif self.heads == 1:
            target.addmm_(d, self.weight)
        else:
            target.baddbmm_(d, self.weight)

    def weight_gradient(self, d: Tensor, h: Tensor, like: Tensor) -> Tensor:
        """Sum over steps and rows of d^T h: (T,H*B,G*K), (T,H*B,K) -> (G*D,K)."""
        low = self.low or d.dtype
        if self.heads == 1:
            return torch.mm(d.flatten(0, 1).to(low).t(), h.flatten(0, 1).to(low)).to(like.dtype)
        d, h = (x.to(low).unflatten(1, (self.heads, -1)).transpose(0, 1).flatten(1, 2) for x in (d, h))
        product = torch.bmm(d.mT, h).unflatten(1, (-1, h.shape[2]))  # (H,G,K,K)
        return product.transpose(0, 1).reshape(like.shape).to(like.dtype)


def by_head(weight: Tensor, heads: int) -> Tensor:
    """(G*D,K) -> (H,G*K,K)"""
    size = weight.shape[1]
    return weight.view(-1, heads, size, size).transpose(0, 1).reshape(heads, -1, size)


def of_head(vector: Tensor, rows: int, heads: int) -> Tensor:
    """(D,) -> (H*B,K): what each row adds."""
    return vector.view(heads, 1, -1).expand(-1, rows // heads, -1).reshape(rows, -1)


def sum_by_head(x: Tensor, heads: int) -> Tensor:
    """(T,H*B,K) -> (D,): the gradient of such a vector."""
    return x.sum(0).unflatten(0, (heads, -1)).sum(1).flatten()


def low_dtype(x: Tensor) -> torch.dtype | None:
    """autocast's dtype where it is on and the work is not in double precision."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def zero_before(states: Tensor, restarts: Tensor | None) -> Tensor:
    """The states that the steps read: (T,B,D) contiguous, with zeros where a step restarts."""
    return states if restarts is None else torch.where(restarts, 0, states).contiguous()


class Elman(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.elman`. With d_t = dL/d(argument of tanh) = (1 - h_t^2) dh_t: dW = sum d_t
    h_(t-1)^T."""

    @staticmethod
    def forward(ctx, pre, weight, h0, mask, resets, work):  # noqa: ANN001, ANN205 (torch's own signature)
        low, width = low_dtype(pre), weight.shape[1]
        heads = h0.shape[1] // width
        product = Product(weight, work, low, heads)
        buffer = held_pre(pre, mask, work, (0.0,), heads)
        states = torch.empty(len(buffer) + 1, *buffer.shape[1:], dtype=work, device=pre.device)
        states[0] = fold(h0, work, width, heads)
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        steps = states.unbind(0)
        for t, argument in enumerate(buffer.unbind(0)):
            before = steps[t] if restarts is None else torch.where(restarts[t], 0, steps[t])
            product.add_forward(argument, before)
            torch.tanh(argument, out=steps[t + 1])
            if held is not None:
                torch.where(held[t], steps[t], steps[t + 1], out=steps[t + 1])
        ctx.save_for_backward(states, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads = (pre.dtype, h0.dtype), low, heads
        return unfold(states[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0 = ctx.needs_input_grad[:3]
        after, width, heads = states[1:], weight.shape[1], ctx.heads
        product = Product(weight, after.dtype, ctx.low, heads)
        factor = torch.addcmul(torch.ones((), dtype=after.dtype, device=after.device), after, after, value=-1)
        if held is not None:
            factor.masked_fill_(held, 0)
        dh = fold(grad, after.dtype, width, heads)
        carry = torch.zeros_like(states[0])
        d_steps, dh_steps = factor.unbind(0), dh.unbind(0)
        for t in reversed(range(len(d_steps))):
            total = dh_steps[t].add_(carry)
            d = d_steps[t].mul_(total)
            carry = torch.zeros_like(total) if held is None else torch.where(held[t], total, 0)
            product.add_backward(carry, d)
            if restarts is not None:
                carry.masked_fill_(restarts[t], 0)
        read = zero_before(states[:-1], restarts)
        return (
            unfold(factor, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(factor, read, weight) if need_weight else None,
            unfold(carry, width, heads).to(ctx.dtypes[1]) if need_h0 else None,
            None,
            None,
            None,
        )


def _gru_steps(states, gates, inner, weight, restarts, low, heads) -> None:  # noqa: ANN001
    """All steps: pre-activations to gates, biases to U_n h + bias, states[0] to the others."""
    work, width = inner.dtype, inner.shape[-1]
    product_rz, product_n = (Product(w, work, low, heads) for w in weight.tensor_split((2 * heads * width,)))
    steps, inners = states.unbind(0), inner.unbind(0)
    rzs, ns = gates[..., : 2 * width].unbind(0), gates[..., 2 * width :].unbind(0)
    rs, zs = gates[..., :width].unbind(0), gates[..., width : 2 * width].unbind(0)
    for t in range(len(inners)):
        before = steps[t] if restarts is None else torch.where(restarts[t], 0, steps[t])
        product_rz.add_forward(rzs[t], before)
        product_n.add_forward(inners[t], before)
        rzs[t].sigmoid_()
        ns[t].addcmul_(rs[t], inners[t]).tanh_()
        torch.lerp(ns[t], before, zs[t], out=steps[t + 1])


def _gru_steps_back(dh, factor, z, product, restarts) -> Tensor:  # noqa: ANN001
    """All steps back: ``dh`` and ``factor`` made full, and the gradient by the first state."""
    carry = dh.new_zeros(dh.shape[1:])
    dh_steps, z_steps, d_steps = dh.unbind(0), z.unbind(0), factor.unbind(0)
    by_gate = factor.unflatten(2, (3, -1)).unbind(0)
    for t in reversed(range(len(d_steps))):
        total = dh_steps[t].add_(carry)
        by_gate[t].mul_(total[:, None])
        carry = total * z_steps[t]
        product.add_backward(carry, d_steps[t])
        if restarts is not None:
            carry.masked_fill_(restarts[t], 0)
    return carry


class GRU(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.gru`. A masked step has z = 1, which keeps the state exactly."""

    @staticmethod
    def forward(ctx, engine, pre, weight, bias, h0, flags, work):  # noqa: ANN001, ANN205
        low, width, (mask, resets) = low_dtype(pre), weight.shape[1], flags
        heads = h0.shape[1] // width
        gates = held_pre(pre, mask, work, (0.0, INF, 0.0), heads)
        inner = torch.empty(*gates.shape[:2], width, dtype=work, device=pre.device)
        inner.copy_(of_head(bias, gates.shape[1], heads))
        states = torch.empty(len(gates) + 1, *inner.shape[1:], dtype=work, device=pre.device)
        states[0] = fold(h0, work, width, heads)
        restarts = columns(resets, heads)
        if engine is None:
            _gru_steps(states, gates, inner, weight, restarts, low, heads)
        else:
            engine.gru(states, gates, inner, weight.to(work).contiguous(), restarts, heads)
        ctx.save_for_backward(states, gates, inner, weight, restarts)
        ctx.dtypes, ctx.low, ctx.heads, ctx.engine = (pre.dtype, bias.dtype, h0.dtype), low, heads, engine
        return unfold(states[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, gates, inner, weight, restarts = ctx.saved_tensors
        need_pre, need_weight, need_bias, need_h0 = ctx.needs_input_grad[1:5]
        width, heads = inner.shape[-1], ctx.heads
        product = Product(weight, inner.dtype, ctx.low, heads)
        read = zero_before(states[:-1], restarts)
        r, z, n = gates.split(width, -1)
        slope = (1 - z).mul_(1 - n * n)  # of h' in the argument of tanh
        # Gradients of U h (and bias), relative to that of h': order r, z, n.
        factor = torch.empty_like(gates)
        torch.mul(slope, r, out=factor[..., 2 * width :])
        torch.mul(factor[..., 2 * width :] * (1 - r), inner, out=factor[..., :width])
        torch.mul((read - n).mul_(z), 1 - z, out=factor[..., width : 2 * width])
        dh = fold(grad, inner.dtype, width, heads)
        if ctx.engine is None:
            carry = _gru_steps_back(dh, factor, z, product, restarts)
        else:
            carry = ctx.engine.gru_back(dh, factor, gates, weight.to(dh.dtype).contiguous(), restarts, heads)
        dweight = product.weight_gradient(factor, read, weight) if need_weight else None
        dbias = sum_by_head(factor[..., 2 * width :], heads).to(ctx.dtypes[1]) if need_bias else None
        if need_pre:
            torch.mul(slope, dh, out=factor[..., 2 * width :])
        return (
            None,
            unfold(factor, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            dweight,
            dbias,
            unfold(carry, width, heads).to(ctx.dtypes[2]) if need_h0 else None,
            None,
            None,
        )


def _lstm_steps(states, gates, squashed, product, flags) -> None:  # noqa: ANN001
    """All steps: pre-activations to gates, states[0] to the others, and tanh(c)."""
    (hs, cs), (restarts, held), width = states, flags, squashed.shape[-1]
    h_steps, c_steps, squashed_steps = hs.unbind(0), cs.unbind(0), squashed.unbind(0)
    i_f_steps = gates[..., : 2 * width].unbind(0)
    i_steps, f_steps, g_steps, o_steps = (x.unbind(0) for x in gates.split(width, -1))
    for t, all_gates in enumerate(gates.unbind(0)):
        h, c = h_steps[t], c_steps[t]
        if restarts is not None:
            h, c = torch.where(restarts[t], 0, h), torch.where(restarts[t], 0, c)
        product.add_forward(all_gates, h)
        i_f_steps[t].sigmoid_()
        torch.mul(f_steps[t], c, out=c_steps[t + 1]).addcmul_(i_steps[t], g_steps[t].tanh_())
        torch.tanh(c_steps[t + 1], out=squashed_steps[t])
        torch.mul(o_steps[t].sigmoid_(), squashed_steps[t], out=h_steps[t + 1])
        if held is not None:
            torch.where(held[t], h, h_steps[t + 1], out=h_steps[t + 1])


def _lstm_steps_back(grads, factor, f, product, flags) -> tuple[Tensor, Tensor]:  # noqa: ANN001
    """All steps back: ``factor`` made full, and the gradients by the first states. grads: by h and c, or None, and what
    h passes on to c."""
    (*outer, into_c), (restarts, held) = grads, flags
    dh_out, dc_out = (None if x is None else x.unbind(0) for x in outer)
    dh, dc = (into_c.new_zeros(into_c.shape[1:]) for _ in range(2))
    d_steps, f_steps, into_c_steps = factor.unbind(0), f.unbind(0), into_c.unbind(0)
    by_gate = factor.unflatten(2, (4, -1))
    of_c, of_h = by_gate[..., :3, :].unbind(0), by_gate[..., 3, :].unbind(0)
    for t in reversed(range(len(d_steps))):
        if dh_out is not None:
            dh = dh.add_(dh_out[t])
        if dc_out is not None:
            dc = dc.add_(dc_out[t])
        dc = dc.addcmul_(dh, into_c_steps[t])
        of_c[t].mul_(dc[:, None])
        of_h[t].mul_(dh)
        dc = dc.mul_(f_steps[t])
        if held is None:
            product.backward_into(dh, d_steps[t])
        else:
            dh = torch.where(held[t], dh, 0)
            product.add_backward(dh, d_steps[t])
        if restarts is not None:
            dh.masked_fill_(restarts[t], 0)
            dc.masked_fill_(restarts[t], 0)
    return dh, dc


class LSTM(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.lstm`. A masked step has i = o = 0 and f = 1, which keeps c exactly; h is
    copied."""

    @staticmethod
    def forward(ctx, engine, pre, weight, h0, c0, flags, work):  # noqa: ANN001, ANN205
        low, width, (mask, resets) = low_dtype(pre), weight.shape[1], flags
        heads = h0.shape[1] // width
        gates = held_pre(pre, mask, work, (-INF, INF, 0.0, -INF), heads)
        steps, rows = gates.shape[:2]
        hs, cs = (torch.empty(steps + 1, rows, width, dtype=work, device=pre.device) for _ in range(2))
        hs[0], cs[0] = fold(h0, work, width, heads), fold(c0, work, width, heads)
        squashed = torch.empty(steps, rows, width, dtype=work, device=pre.device)
        restarts, held = columns(resets, heads), columns(mask, heads, invert=True)
        if engine is None:
            product = Product(weight, work, low, heads)
            _lstm_steps((hs, cs), gates, squashed, product, (restarts, held))
        else:
            engine.lstm((hs, cs), gates, squashed, weight.to(work).contiguous(), (restarts, held), heads)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hs, cs, gates, squashed, weight, restarts, held)
        ctx.dtypes, ctx.low, ctx.heads, ctx.engine = (pre.dtype, h0.dtype, c0.dtype), low, heads, engine
        return unfold(hs[1:], width, heads), unfold(cs[1:], width, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_c):  # noqa: ANN001, ANN205
        hs, cs, gates, squashed, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0, need_c0 = ctx.needs_input_grad[1:5]
        width, work, heads = squashed.shape[-1], squashed.dtype, ctx.heads
        product = Product(weight, work, ctx.low, heads)
        read_h, read_c = zero_before(hs[:-1], restarts), zero_before(cs[:-1], restarts)
        i, f, g, o = gates.split(width, -1)
        into_c = (1 - squashed * squashed).mul_(o)
        factor = torch.empty_like(
            gates
        )  # gradients of the pre-activations relative to dc (i, f, g) and dh (o)
        torch.mul((1 - i).mul_(i), g, out=factor[..., :width])
        torch.mul((1 - f).mul_(f), read_c, out=factor[..., width : 2 * width])
        torch.mul(1 - g * g, i, out=factor[..., 2 * width : 3 * width])
        torch.mul((1 - o).mul_(o), squashed, out=factor[..., 3 * width :])
        grads = [None if x is None else fold(x, work, width, heads) for x in (grad_h, grad_c)]
        if ctx.engine is None:
            dh, dc = _lstm_steps_back((*grads, into_c), factor, f, product, (restarts, held))
        else:
            grads = [torch.zeros_like(into_c) if x is None else x for x in grads]
            whole = weight.to(work).contiguous()
            dh, dc = ctx.engine.lstm_back((*grads, into_c), factor, gates, whole, (restarts, held), heads)
        return (
            None,
            unfold(factor, width, heads).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(factor, read_h, weight) if need_weight else None,
            unfold(dh, width, heads).to(ctx.dtypes[1]) if need_h0 else None,
            unfold(dc, width, heads).to(ctx.dtypes[2]) if need_c0 else None,
            None,
            None,
        )
