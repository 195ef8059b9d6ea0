"""Nonlinear recurrences in parallel over time, by Newton's method.

All steps of h_t = f(h_(t-1), x_t) are one system, f(h_(t-1), x_t) - h_t = 0. A Newton step linearises f at the present
guess, J_t = df/dh(h_(t-1), x_t), and solves ::

    d_t = J_t d_(t-1) + (f(h_(t-1), x_t) - h_t),  d_0 = 0,        h <- h + d

which is an affine scan. It is cheap where J_t is small in each channel: a number (K = 1), or a 2 x 2 block between the
two numbers of a channel (K = 2). The guess is exact behind k steps after k of them whatever f is, and near the solution
the error is squared each time; with a Jacobian much above one it can grow out of the numbers before that, so the
residual is checked and the plain loop takes over. The iterations are never differentiated: at the solution one reverse
scan with the transposed J_t gives the gradients of all states, and f, applied once to all steps, everything else.

Source: arXiv 2510.21450 (ParaRNN, 2025); the start f(0, x_t) is theirs, the stopping rule and the fallback are ours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.errors import UserError
from ..core.seq import zero_masked
from .affine import _doubling, adjoint_scan, affine_scan
from .scan import linear_scan

logger = logging.getLogger("transduce.ops")

Step = Callable[[Tensor, Tensor], Tensor]
"""(N,P) what a step reads and (N,K,D) the state before it -> the state behind it (N,K,D), or its Jacobian
(N,K,K,D): entry i, j is the derivative of component i behind in component j before."""


@dataclass(frozen=True)
class Newton:
    """When the iteration ends. ``tolerance``: largest residual, relative to the largest state (at least 1); None means
    16 times the precision of the dtype. ``max_iterations``: Newton steps before the loop takes over."""

    tolerance: float | None = None
    max_iterations: int = 12


@dataclass(frozen=True)
class Solution:
    """How a solve went. ``residuals``: largest |f(h_(t-1), x_t) - h_t| at the start and behind each Newton step.
    ``fallback``: why the loop took over, or None."""

    residuals: tuple[float, ...]
    fallback: str | None

    @property
    def iterations(self) -> int:
        return len(self.residuals) - 1


class _Problem:
    """The recurrence with its marks: every function here is for all steps at once, (B,T,...)."""

    def __init__(self, step: Step, pre: Tensor, h0: Tensor, marks: tuple[Tensor | None, ...]) -> None:
        self.pre, self.h0, self.step = pre, h0, step
        mask, resets, self.fresh = marks
        self.mask = None if mask is None else mask[..., None, None]
        self.resets = None if resets is None else (resets if mask is None else resets & mask)[..., None, None]

    def _everywhere(self, fn: Step, h: Tensor) -> Tensor:
        return fn(self.pre.flatten(0, 1), h.flatten(0, 1)).unflatten(0, self.pre.shape[:2])

    def start(self) -> Tensor:
        """f(0, x_t) everywhere."""
        return self.after(torch.zeros_like(self.h0)[:, None].expand(-1, self.pre.shape[1], -1, -1))

    def before(self, h: Tensor) -> Tensor:
        """What each step reads when the states behind them are ``h``."""
        shifted = torch.cat((self.h0[:, None], h[:, :-1]), 1)
        return shifted if self.resets is None else torch.where(self.resets, self.fresh[:, None], shifted)

    def after(self, before: Tensor) -> Tensor:
        h = self._everywhere(self.step, before)
        return h if self.mask is None else torch.where(self.mask, h, before)

    def jacobian(self, jacobian: Step, before: Tensor) -> Tensor:
        """(B,T,K,K,D): the identity at masked steps, zero where a history begins."""
        j = self._everywhere(jacobian, before)
        if self.mask is not None:
            same = torch.eye(j.shape[2], dtype=j.dtype, device=j.device)[..., None]
            j = torch.where(self.mask[..., None], j, same)
        return j if self.resets is None else torch.where(self.resets[..., None], 0, j)


def _affine(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The scan of either block size; on an accelerator in a logarithmic number of rounds."""
    if a.device.type != "cpu":
        return _doubling(a, b, h0, reverse)
    if a.shape[2] == 1:
        return linear_scan(a[:, :, 0, 0], b[:, :, 0], h0[:, 0], reverse=reverse)[:, :, None]
    return affine_scan(a, b, h0, reverse=reverse)


class _Implicit(torch.autograd.Function):
    """The identity on the states of a solution. Backward: u_t = grad_t + J_(t+1)^T u_(t+1)."""

    @staticmethod
    def forward(ctx, h, jacobian):  # noqa: ANN001, ANN205 (torch's own signature)
        ctx.save_for_backward(jacobian)
        return h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        return adjoint_scan(ctx.saved_tensors[0], grad, _affine), None


def newton_guesses(
    step: Step, jacobian: Step, pre: Tensor, h0: Tensor, iterations: int
) -> Iterator[Tensor]:
    """The start and the guess behind each of so many Newton steps, (B,T,K,D) each, whatever becomes of them: to look at
    convergence. No marks, no gradients."""
    problem = _Problem(step, pre, h0, (None, None, None))
    with torch.no_grad():
        h = problem.start()
        yield h
        for _ in range(iterations):
            before = problem.before(h)
            residual = problem.after(before) - h
            h = h + _affine(problem.jacobian(jacobian, before), residual, torch.zeros_like(h0), False)
            yield h


def _iterate(problem: _Problem, jacobian: Step, settings: Newton) -> tuple[Tensor, Solution]:
    """The solution, or the last guess where there is a reason to fall back."""
    h = problem.start()
    tolerance = settings.tolerance
    if tolerance is None:
        tolerance = 16 * torch.finfo(h.dtype).eps
    residuals: list[float] = []
    while True:
        before = problem.before(h)
        after = problem.after(before)
        residual = after - h
        largest, scale = (float(x.abs().max()) for x in (residual, after))
        residuals.append(largest)
        if largest <= tolerance * max(1.0, scale):
            return after, Solution(tuple(residuals), None)
        reason = None
        if not largest < float("inf"):
            reason = f"it diverged in iteration {len(residuals) - 1}"
        elif len(residuals) > settings.max_iterations:
            reason = f"the residual is {largest:.1e} after {settings.max_iterations} iterations"
        if reason is not None:
            return after, Solution(tuple(residuals), reason)
        h = h + _affine(problem.jacobian(jacobian, before), residual, torch.zeros_like(problem.h0), False)


def newton_solve(
    step: Step,
    jacobian: Step,
    pre: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    fresh: Tensor | None = None,
    settings: Newton = Newton(),
) -> tuple[Tensor, Solution]:
    """All states of h_t = step(pre_t, h_(t-1)) at once: (B,T,K,D), and how it went. See the top of this module.

    Args:
        step, jacobian: see :data:`Step`; ``step`` must be differentiable and treat every row alike.
        pre: (B,T,P), what the steps read beside the state; at masked steps whatever it holds has no influence.
        h0: (B,K,D), the states before the first step.
        mask: (B,T) bool, False: the row keeps its state at this step.
        resets: (B,T) bool, True: the step reads ``fresh`` (B,K,D; None: zeros) instead of the state before it.

    Where Newton's method does not get there, the steps are run one after the other and the reason is logged; the
    result is that of the loop in either case. Differentiable once in ``h0`` and in all that ``step`` and ``pre``
    depend on.
    """
    dtype = torch.promote_types(pre.dtype, h0.dtype)
    if dtype in (torch.float16, torch.bfloat16):  # too coarse for a residual: float32, and rounded at the end
        fresh = None if fresh is None else fresh.float()
        h, solution = newton_solve(
            step, jacobian, pre.float(), h0.float(), mask=mask, resets=resets, fresh=fresh, settings=settings
        )
        return h.to(dtype), solution
    pre = zero_masked(pre, mask)
    if fresh is None and resets is not None:
        fresh = torch.zeros_like(h0)
    problem = _Problem(step, pre, h0, (mask, resets, fresh))
    if not pre.shape[1]:
        return h0.new_zeros(h0.shape[0], 0, *h0.shape[1:]), Solution((0.0,), None)
    with torch.no_grad():
        found, solution = _iterate(problem, jacobian, settings)
    if solution.fallback is not None:
        logger.warning("Newton's method gave up: %s. The steps are run one after the other.", solution.fallback)
        return sequential_solve(step, pre, h0, mask=mask, resets=resets, fresh=fresh), solution
    if not torch.is_grad_enabled():
        return found, solution
    before = problem.before(found.detach())
    with torch.no_grad():
        slopes = problem.jacobian(jacobian, before.detach())
    return _Implicit.apply(problem.after(before), slopes), solution


def sequential_solve(
    step: Step,
    pre: Tensor,
    h0: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    fresh: Tensor | None = None,
) -> Tensor:
    """The same states by one step after the other."""
    steps = pre.shape[1]
    masks = (None,) * steps if mask is None else mask[..., None, None].unbind(1)
    restarts = (None,) * steps
    if resets is not None:
        restarts = (resets if mask is None else resets & mask)[..., None, None].unbind(1)
        fresh = torch.zeros_like(h0) if fresh is None else fresh
    h, states = h0, []
    for p, valid, restart in zip(zero_masked(pre, mask).unbind(1), masks, restarts):
        before = h if restart is None else torch.where(restart, fresh, h)
        after = step(p, before)
        h = after if valid is None else torch.where(valid, after, h)
        states.append(h)
    return torch.stack(states, 1)


def automatic_jacobian(step: Step) -> Step:
    """The Jacobian of a step of which it is known that no channel reads another one: K backward passes."""

    def jacobian(pre: Tensor, h: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            parts = step(pre.detach(), leaf).sum((0, 2))
            rows = [torch.autograd.grad(p, leaf, retain_graph=True)[0] for p in parts]
        return torch.stack(rows, 1)

    return jacobian


def check_structure(step: Step, pre: Tensor, h0: Tensor, name: str, *, trials: int = 3) -> None:
    """Raise UserError unless no channel of a step reads another channel's state.

    The whole Jacobian is taken at random points: for ``pre`` (1,P) and ``h0`` (1,K,D), which give shapes and dtype.
    """
    size, width = h0.shape[1:]
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    for _ in range(trials):
        p, h = noise(pre), noise(h0)
        full = torch.autograd.functional.jacobian(lambda s: step(p, s)[0], h)[:, :, 0]  # (K,D,K,D)
        across = full.abs() * (1 - torch.eye(width, dtype=h.dtype, device=h.device))[None, :, None, :]
        if bool((across > 1e-12).any()):
            i, d, j, e = (int(x) for x in torch.unravel_index(across.argmax(), across.shape))
            raise UserError(
                f"{name} cannot be solved by Newton's method: channel {d} of its state reads channel {e} (derivative "
                f"{float(full[i, d, j, e]):.2g}), and only recurrences whose channels do not mix are cheap to "
                'linearise; use solver="loop".'
            )
