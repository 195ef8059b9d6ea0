"""Mixers made of mixers. The state of a composition is a tuple that mirrors it; causality, lookahead and growth follow
from the parts."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State

from .masking import valid_resets


class Pointwise(Mixer):
    """A function of single positions (norm, feedforward, dropout, linear map) as a mixer: y_t = f(x_t).

    The state is the empty tuple.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if isinstance(module, Mixer):
            raise TypeError(f"{type(module).__name__} is a mixer already; use it without Pointwise")
        self.module = module

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return ()

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return self.module(zero_masked(x, mask)), state


class Serial(Mixer):
    """One mixer after another: y = f_n(... f_1(x)). State: one entry a mixer.

    A mixer may appear twice; its weights are shared then, and each place has its own state.
    """

    def __init__(self, *mixers: Mixer) -> None:
        super().__init__()
        self.mixers = _parts(mixers)
        self.causal, self.lookahead = _sight(mixers, sum)

    @property
    def bytes_per_step(self) -> int:
        return sum(m.bytes_per_step for m in self.mixers)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return tuple(m.init_state(batch, capacity=capacity) for m in self.mixers)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        after: list[State] = []
        for mixer, before in zip(self.mixers, _states(self, state, len(self.mixers))):
            x, kept = mixer(x, before, mask=mask, resets=resets)
            after.append(kept)
        return x, None if state is None else tuple(after)


class Repeat(Mixer):
    """The same mixer ``times`` times in a row, one set of weights: y = f(f(... f(x))) (Dehghani et al. 2019, section 2.1).

    Every pass has a state of its own.
    """

    def __init__(self, mixer: Mixer, times: int) -> None:
        super().__init__()
        if times < 1:
            raise ValueError(f"Repeat needs at least one pass, not {times}")
        self.passes = Serial(*[mixer] * times)
        self.causal, self.lookahead = self.passes.causal, self.passes.lookahead

    @property
    def bytes_per_step(self) -> int:
        return self.passes.bytes_per_step

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.passes.init_state(batch, capacity=capacity)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return self.passes(x, state, mask=mask, resets=resets)


class Residual(Mixer):
    """y = x + dropout(mixer(norm(x))), the pre-norm residual branch (Xiong et al. 2020). State: that of the mixer.

    ``norm``: a position-wise module, or None for none.
    """

    def __init__(self, mixer: Mixer, *, norm: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer, self.norm, self.dropout = mixer, norm, nn.Dropout(dropout)
        self.causal, self.lookahead = mixer.causal, mixer.lookahead

    @property
    def bytes_per_step(self) -> int:
        return self.mixer.bytes_per_step

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.mixer.init_state(batch, capacity=capacity)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        branch, state = self.mixer(x if self.norm is None else self.norm(x), state, mask=mask, resets=resets)
        return x + self.dropout(branch), state


class Parallel(Mixer):
    """Mixers side by side on the same input, joined by ``combine``. State: one entry a mixer.

    * "sum": y = f_1(x) + ... + f_n(x).
    * "concat": y = [f_1(x); ...; f_n(x)], as wide as all of them together.
    * "concat-project": y = W [f_1(x); ...; f_n(x)] + b, for mixers of equal width ``dim``, which must be given.
    """

    def __init__(self, *mixers: Mixer, combine: str = "sum", dim: int | None = None) -> None:
        super().__init__()
        if combine not in ("sum", "concat", "concat-project"):
            raise ValueError(f'combine must be "sum", "concat" or "concat-project", not {combine!r}')
        if (combine == "concat-project") != (dim is not None):
            raise ValueError('give dim, the width of each mixer, with combine="concat-project" and only then')
        self.mixers = _parts(mixers)
        self.causal, self.lookahead = _sight(mixers, max)
        self.concatenates = combine != "sum"
        self.project = None if dim is None else nn.Linear(len(mixers) * dim, dim)

    @property
    def bytes_per_step(self) -> int:
        return sum(m.bytes_per_step for m in self.mixers)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return tuple(m.init_state(batch, capacity=capacity) for m in self.mixers)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        given = _states(self, state, len(self.mixers))
        results = [m(x, before, mask=mask, resets=resets) for m, before in zip(self.mixers, given)]
        ys = [y for y, _ in results]
        y = torch.cat(ys, -1) if self.concatenates else sum(ys[1:], ys[0])
        if self.project is not None:
            y = self.project(y)
        return y, None if state is None else tuple(after for _, after in results)


class Reversed(Mixer):
    """A causal mixer that reads from right to left: y_t depends on x_t, x_{t+1}, ... It keeps no state.

    Each row is reversed within its own valid steps, which then stand at the left; so padding never comes first.
    """

    causal = False
    lookahead = None

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        raise ValueError("a mixer that reads from right to left has no state; call it with the whole sequence")

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _states(self, state, 1)
        resets = valid_resets(resets, mask)
        if mask is None:
            y, _ = self.mixer(x.flip(1), resets=None if resets is None else _first_of_reversed(resets.flip(1)))
            return y.flip(1), None
        order = _reversing_order(mask)
        resets = None if resets is None else _first_of_reversed(resets.gather(1, order))
        y, _ = self.mixer(_take(zero_masked(x, mask), order), mask=mask.gather(1, order), resets=resets)
        return _take(y, order.argsort(1)), None


def Bidirectional(forward: Mixer, backward: Mixer, *, combine: str = "concat", dim: int | None = None) -> Parallel:
    """A causal mixer in each direction (Schuster and Paliwal 1997): ``Parallel(forward, Reversed(backward))``.

    Not causal, so it refuses a state. ``combine`` and ``dim`` as for :class:`Parallel`; "concat" makes the output as wide as
    both together.
    """
    return Parallel(forward, Reversed(backward), combine=combine, dim=dim)


def _parts(mixers: Sequence[Mixer]) -> nn.ModuleList:
    if not mixers:
        raise ValueError("give at least one mixer")
    for m in mixers:
        if not isinstance(m, Mixer):
            raise TypeError(f"{type(m).__name__} is not a mixer; wrap a module that acts on single positions in Pointwise")
    return nn.ModuleList(mixers)


def _sight(mixers: Sequence[Mixer], join) -> tuple[bool, int | None]:
    """(causal, lookahead) of a composition; lookaheads in a row add up, side by side the largest counts."""
    unbounded = any(m.lookahead is None for m in mixers)
    return all(m.causal for m in mixers), None if unbounded else join([m.lookahead for m in mixers])


def _states(mixer: Mixer, state: State, parts: int) -> Sequence[State]:
    if state is None:
        return (None,) * parts
    if not mixer.causal:
        raise ValueError(f"this {type(mixer).__name__} reads ahead and keeps no state; call it with the whole sequence")
    if len(state) != parts:
        raise ValueError(f"this {type(mixer).__name__} has {parts} mixers, the state {len(state)} entries")
    return state


def _reversing_order(mask: Tensor) -> Tensor:
    """(B,T) time indices: the valid steps of each row backwards, then its masked ones."""
    steps = mask.shape[1]
    time = torch.arange(steps, device=mask.device)
    return torch.where(mask, steps - 1 - time, steps + time).argsort(1)


def _first_of_reversed(resets: Tensor) -> Tensor:
    """Reversed resets mark the last step of each history; the next one begins a step later."""
    return torch.cat((torch.zeros_like(resets[:, :1]), resets[:, :-1]), 1)


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
