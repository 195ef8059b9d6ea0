"""Recurrent loops with an analytic backward, for :mod:`transduce.ops.rnn`.

Buffers are time-major, so a step is one contiguous block. Forward keeps the gates; backward first turns them
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


def time_major(x: Tensor, work: torch.dtype) -> Tensor:
    """(B,T,P) -> a fresh (T,B,P) buffer."""
    return torch.empty(x.shape[1], x.shape[0], x.shape[2], dtype=work, device=x.device).copy_(
        x.transpose(0, 1)
    )


def held_pre(x: Tensor, mask: Tensor | None, work: torch.dtype, hold: Sequence[float]) -> Tensor:
    """Time-major pre-activations; masked steps hold ``hold``, one number a gate."""
    buffer = time_major(x, work)
    if mask is not None:
        gates = buffer.unflatten(2, (len(hold), -1))
        held = torch.tensor(hold, dtype=work, device=x.device)[:, None]
        torch.where(mask.t()[..., None, None], gates, held, out=gates)
    return buffer


def columns(flags: Tensor | None, invert: bool = False) -> Tensor | None:
    """(B,T) bool -> (T,B,1), optionally negated."""
    return None if flags is None else (~flags if invert else flags).t()[..., None]


def batch_major(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()


class Product:
    """The step's product with the (P,D) weights, in the dtype ``low`` (autocast's) where that is given."""

    def __init__(self, weight: Tensor, work: torch.dtype, low: torch.dtype | None) -> None:
        self.low = low
        self.weight = weight.to(low or work)
        self.transposed = self.weight.t()

    def add_forward(self, target: Tensor, h: Tensor) -> None:
        """target (B,P) += h W^T"""
        if self.low is None:
            target.addmm_(h, self.transposed)
        else:
            target.add_(torch.mm(h.to(self.low), self.transposed))

    def forward_into(self, target: Tensor, h: Tensor) -> None:
        """target (B,P) = h W^T"""
        if self.low is None:
            torch.mm(h, self.transposed, out=target)
        else:
            target.copy_(torch.mm(h.to(self.low), self.transposed))

    def backward_into(self, target: Tensor, d: Tensor) -> None:
        """target (B,D) = d W"""
        if self.low is None:
            torch.mm(d, self.weight, out=target)
        else:
            target.copy_(torch.mm(d.to(self.low), self.weight))

    def add_backward(self, target: Tensor, d: Tensor) -> None:
        """target (B,D) += d W"""
        if self.low is None:
            target.addmm_(d, self.weight)
        else:
            target.add_(torch.mm(d.to(self.low), self.weight))

    def weight_gradient(self, d: Tensor, h: Tensor, like: Tensor) -> Tensor:
        """Sum over steps and rows of d^T h: (T,B,P), (T,B,D) -> (P,D)."""
        low = self.low or d.dtype
        return torch.mm(d.flatten(0, 1).to(low).t(), h.flatten(0, 1).to(low)).to(like.dtype)


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
        low = low_dtype(pre)
        product = Product(weight, work, low)
        buffer = held_pre(pre, mask, work, (0.0,))
        states = torch.empty(len(buffer) + 1, *h0.shape, dtype=work, device=pre.device)
        states[0] = h0
        restarts, held = columns(resets), columns(mask, invert=True)
        steps = states.unbind(0)
        for t, argument in enumerate(buffer.unbind(0)):
            before = steps[t] if restarts is None else torch.where(restarts[t], 0, steps[t])
            product.add_forward(argument, before)
            torch.tanh(argument, out=steps[t + 1])
            if held is not None:
                torch.where(held[t], steps[t], steps[t + 1], out=steps[t + 1])
        ctx.save_for_backward(states, weight, restarts, held)
        ctx.dtypes, ctx.low = (pre.dtype, h0.dtype), low
        return batch_major(states[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0 = ctx.needs_input_grad[:3]
        after = states[1:]
        product = Product(weight, after.dtype, ctx.low)
        factor = torch.addcmul(torch.ones((), dtype=after.dtype, device=after.device), after, after, value=-1)
        if held is not None:
            factor.masked_fill_(held, 0)
        dh = time_major(grad, after.dtype)
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
            batch_major(factor).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(factor, read, weight) if need_weight else None,
            carry.to(ctx.dtypes[1]) if need_h0 else None,
            None,
            None,
            None,
        )


class GRU(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.gru`. A masked step has z = 1, which keeps the state exactly."""

    @staticmethod
    def forward(ctx, pre, weight, bias, h0, mask, resets, work):  # noqa: ANN001, ANN205
        width = h0.shape[1]
        low = low_dtype(pre)
        product_rz = Product(weight[: 2 * width], work, low)
        product_n = Product(weight[2 * width :], work, low)
        gates = held_pre(pre, mask, work, (0.0, INF, 0.0))
        inner = torch.empty(*gates.shape[:2], width, dtype=work, device=pre.device).copy_(bias)
        states = torch.empty(len(gates) + 1, *h0.shape, dtype=work, device=pre.device)
        states[0] = h0
        restarts = columns(resets)
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
        ctx.save_for_backward(states, gates, inner, weight, restarts)
        ctx.dtypes, ctx.low = (pre.dtype, bias.dtype, h0.dtype), low
        return batch_major(states[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        states, gates, inner, weight, restarts = ctx.saved_tensors
        need_pre, need_weight, need_bias, need_h0 = ctx.needs_input_grad[:4]
        width = inner.shape[-1]
        product = Product(weight, inner.dtype, ctx.low)
        read = zero_before(states[:-1], restarts)
        r, z, n = gates.split(width, -1)
        slope = (1 - z).mul_(1 - n * n)  # of h' in the argument of tanh
        # Gradients of U h (and bias), relative to that of h': order r, z, n.
        factor = torch.empty_like(gates)
        torch.mul(slope, r, out=factor[..., 2 * width :])
        torch.mul(factor[..., 2 * width :] * (1 - r), inner, out=factor[..., :width])
        torch.mul((read - n).mul_(z), 1 - z, out=factor[..., width : 2 * width])
        dh = time_major(grad, inner.dtype)
        carry = torch.zeros_like(states[0])
        dh_steps, z_steps, d_steps = dh.unbind(0), z.unbind(0), factor.unbind(0)
        by_gate = factor.unflatten(2, (3, width)).unbind(0)
        for t in reversed(range(len(d_steps))):
            total = dh_steps[t].add_(carry)
            by_gate[t].mul_(total[:, None])
            carry = total * z_steps[t]
            product.add_backward(carry, d_steps[t])
            if restarts is not None:
                carry.masked_fill_(restarts[t], 0)
        dweight = product.weight_gradient(factor, read, weight) if need_weight else None
        dbias = factor[..., 2 * width :].sum((0, 1)).to(ctx.dtypes[1]) if need_bias else None
        if need_pre:
            torch.mul(slope, dh, out=factor[..., 2 * width :])
        return (
            batch_major(factor).to(ctx.dtypes[0]) if need_pre else None,
            dweight,
            dbias,
            carry.to(ctx.dtypes[2]) if need_h0 else None,
            None,
            None,
            None,
        )


class LSTM(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.lstm`. A masked step has i = o = 0 and f = 1, which keeps c exactly; h is
    copied."""

    @staticmethod
    def forward(ctx, pre, weight, h0, c0, mask, resets, work):  # noqa: ANN001, ANN205
        width = h0.shape[1]
        low = low_dtype(pre)
        product = Product(weight, work, low)
        gates = held_pre(pre, mask, work, (-INF, INF, 0.0, -INF))
        hs, cs = (torch.empty(len(gates) + 1, *h0.shape, dtype=work, device=pre.device) for _ in range(2))
        hs[0], cs[0] = h0, c0
        squashed = torch.empty(len(gates), *h0.shape, dtype=work, device=pre.device)
        restarts, held = columns(resets), columns(mask, invert=True)
        h_steps, c_steps, squashed_steps = hs.unbind(0), cs.unbind(0), squashed.unbind(0)
        for t, all_gates in enumerate(gates.unbind(0)):
            h, c = h_steps[t], c_steps[t]
            if restarts is not None:
                h, c = torch.where(restarts[t], 0, h), torch.where(restarts[t], 0, c)
            product.add_forward(all_gates, h)
            all_gates[:, : 2 * width].sigmoid_()
            all_gates[:, 3 * width :].sigmoid_()
            i, f, g, o = all_gates.split(width, 1)
            g.tanh_()
            torch.mul(f, c, out=c_steps[t + 1]).addcmul_(i, g)
            torch.tanh(c_steps[t + 1], out=squashed_steps[t])
            torch.mul(o, squashed_steps[t], out=h_steps[t + 1])
            if held is not None:
                torch.where(held[t], h, h_steps[t + 1], out=h_steps[t + 1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hs, cs, gates, squashed, weight, restarts, held)
        ctx.dtypes, ctx.low = (pre.dtype, h0.dtype, c0.dtype), low
        return batch_major(hs[1:]), batch_major(cs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_c):  # noqa: ANN001, ANN205
        hs, cs, gates, squashed, weight, restarts, held = ctx.saved_tensors
        need_pre, need_weight, need_h0, need_c0 = ctx.needs_input_grad[:4]
        width, work = squashed.shape[-1], squashed.dtype
        product = Product(weight, work, ctx.low)
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
        dh_out = None if grad_h is None else time_major(grad_h, work).unbind(0)
        dc_out = None if grad_c is None else time_major(grad_c, work).unbind(0)
        dh, dc = torch.zeros_like(hs[0]), torch.zeros_like(cs[0])
        d_steps, f_steps, into_c_steps = factor.unbind(0), f.unbind(0), into_c.unbind(0)
        by_gate = factor.unflatten(2, (4, width)).unbind(0)
        for t in reversed(range(len(d_steps))):
            if dh_out is not None:
                dh = dh.add_(dh_out[t])
            if dc_out is not None:
                dc = dc.add_(dc_out[t])
            dc = dc.addcmul_(dh, into_c_steps[t])
            by_gate[t][:, :3].mul_(dc[:, None])
            by_gate[t][:, 3].mul_(dh)
            dc = dc.mul_(f_steps[t])
            dh = torch.zeros_like(dh) if held is None else torch.where(held[t], dh, 0)
            product.add_backward(dh, d_steps[t])
            if restarts is not None:
                dh.masked_fill_(restarts[t], 0)
                dc.masked_fill_(restarts[t], 0)
        return (
            batch_major(factor).to(ctx.dtypes[0]) if need_pre else None,
            product.weight_gradient(factor, read_h, weight) if need_weight else None,
            dh.to(ctx.dtypes[1]) if need_h0 else None,
            dc.to(ctx.dtypes[2]) if need_c0 else None,
            None,
            None,
            None,
        )


class GRUGates(torch.autograd.Function):
    """See :func:`transduce.ops.rnn.gru_gates`."""

    @staticmethod
    def forward(ctx, pre, recurrent, h):  # noqa: ANN001, ANN205
        width = h.shape[1]
        inner = recurrent[:, 2 * width :]
        r, z = (pre[:, : 2 * width] + recurrent[:, : 2 * width]).sigmoid_().split(width, 1)
        n = torch.addcmul(pre[:, 2 * width :], r, inner).tanh_()
        ctx.save_for_backward(r, z, n, inner, h)
        return torch.lerp(n, h, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        r, z, n, inner, h = ctx.saved_tensors
        dh = grad * z
        dn = (grad - dh).mul_(1 - n * n)
        d_inner = dn * r
        dr = (1 - r).mul_(d_inner).mul_(inner)
        dz = (h - n).mul_(dh).mul_(1 - z)
        return torch.cat((dr, dz, dn), 1), torch.cat((dr, dz, d_inner), 1), dh
