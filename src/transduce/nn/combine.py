"""Mixers made of mixers. Their states mirror the composition, so the state algebra works on any stack."""

from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State

from .masking import valid_resets


def _lookahead(mixers: Iterable[Mixer], *, chained: bool) -> int | None:
    """How far a combination looks ahead: the sum along a chain, the largest of branches, None if one is."""
    ahead = [m.lookahead for m in mixers]
    if any(a is None for a in ahead):
        return None
    return sum(ahead) if chained else max(ahead, default=0)


class Pointwise(Mixer):
    """Any position-wise module (feedforward, norm, dropout, linear) as a mixer with nothing to remember."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return ()

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return self.module(zero_masked(x, mask)), state


class Serial(Mixer):
    """One after the other: y = f_n(..f_1(x)). The state is the tuple of their states."""

    def __init__(self, *mixers: Mixer) -> None:
        super().__init__()
        if not mixers:
            raise ValueError("Serial needs at least one mixer")
        self.mixers = nn.ModuleList(mixers)
        self.causal = all(m.causal for m in mixers)
        self.lookahead = _lookahead(mixers, chained=True)

    @property
    def bytes_per_step(self) -> int:
        return sum(m.bytes_per_step for m in self.mixers)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        _refuse_unless_causal(self)
        return tuple(m.init_state(batch, capacity=capacity) for m in self.mixers)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is None:
            for mixer in self.mixers:
                x, _ = mixer(x, mask=mask, resets=resets)
            return x, None
        _refuse_unless_causal(self)
        after: list[State] = []
        for mixer, before in zip(self.mixers, state):
            x, now = mixer(x, before, mask=mask, resets=resets)
            after.append(now)
        return x, tuple(after)


class Residual(Mixer):
    """y = x + dropout(f(norm(x))), the pre-norm residual branch (Xiong et al. 2020), with the state of f."""

    def __init__(self, mixer: Mixer, *, norm: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm if norm is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
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
        y, after = self.mixer(self.norm(x), state, mask=mask, resets=resets)
        return x + self.dropout(y), after


class Parallel(Mixer):
    """Several mixers read the same input; their outputs are summed, or joined and projected back to ``dim``.

    ``combine``: "sum", or "project", which needs ``dim``. The state is the tuple of their states.
    """

    def __init__(self, *mixers: Mixer, combine: str = "sum", dim: int | None = None) -> None:
        super().__init__()
        if not mixers:
            raise ValueError("Parallel needs at least one mixer")
        if combine not in ("sum", "project") or (combine == "project") != (dim is not None):
            raise ValueError('combine is "sum", or "project" together with dim')
        self.mixers = nn.ModuleList(mixers)
        self.project = nn.Linear(len(mixers) * dim, dim) if dim is not None else None
        self.causal = all(m.causal for m in mixers)
        self.lookahead = _lookahead(mixers, chained=False)

    @property
    def bytes_per_step(self) -> int:
        return sum(m.bytes_per_step for m in self.mixers)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        _refuse_unless_causal(self)
        return tuple(m.init_state(batch, capacity=capacity) for m in self.mixers)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is not None:
            _refuse_unless_causal(self)
        before = (None,) * len(self.mixers) if state is None else state
        found = [m(x, s, mask=mask, resets=resets) for m, s in zip(self.mixers, before)]
        outputs = [y for y, _ in found]
        y = sum(outputs[1:], outputs[0]) if self.project is None else self.project(torch.cat(outputs, -1))
        return y, None if state is None else tuple(s for _, s in found)


class Repeat(Mixer):
    """The same mixer ``times`` times in a row with the same weights; each pass has a state of its own."""

    def __init__(self, mixer: Mixer, times: int) -> None:
        super().__init__()
        if times < 1:
            raise ValueError(f"Repeat needs times >= 1, got {times}")
        self.mixer, self.times = mixer, times
        self.causal = mixer.causal
        self.lookahead = None if mixer.lookahead is None else times * mixer.lookahead

    @property
    def bytes_per_step(self) -> int:
        return self.times * self.mixer.bytes_per_step

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return tuple(self.mixer.init_state(batch, capacity=capacity) for _ in range(self.times))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        after: list[State] = []
        for before in (None,) * self.times if state is None else state:
            x, now = self.mixer(x, before, mask=mask, resets=resets)
            after.append(now)
        return x, None if state is None else tuple(after)


class Bidirectional(Mixer):
    """One mixer reads forward, another backward; their outputs are joined: (B,T,D) -> (B,T,D_f + D_b).

    Each row is reversed within its own valid steps, which then stand at the left; so no direction begins with
    padding, wherever the mask has it. It reads the whole sequence and therefore refuses a state. ``resets``
    separate packed sequences in both directions.
    """

    causal = False
    lookahead = None

    def __init__(self, forward: Mixer, backward: Mixer) -> None:
        super().__init__()
        self.ahead, self.back = forward, backward

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        _refuse_unless_causal(self)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is not None:
            _refuse_unless_causal(self)
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        ahead, _ = self.ahead(x, mask=mask, resets=resets)
        order = None if mask is None else _reversal(mask)
        turned = None if resets is None else _begins(_turn(resets, order))
        back, _ = self.back(_turn(x, order), mask=None if mask is None else _turn(mask, order), resets=turned)
        return torch.cat((ahead, _turn(back, None if order is None else order.argsort(1))), -1), None


def _reversal(mask: Tensor) -> Tensor:
    """(B,T) time indices: the valid steps of each row backwards, then its masked ones."""
    steps = mask.shape[1]
    time = torch.arange(steps, device=mask.device)
    return torch.where(mask, steps - 1 - time, steps + time).argsort(1)


def _turn(x: Tensor, order: Tensor | None) -> Tensor:
    """The steps of ``x`` in that order; None for a plain flip."""
    if order is None:
        return x.flip(1)
    return x.gather(1, order.view(*order.shape, *([1] * (x.dim() - 2))).expand_as(x))


def _begins(resets: Tensor) -> Tensor:
    """A reversed reset marks the last step of a history; the backward reading begins anew one step later."""
    return torch.cat((torch.zeros_like(resets[:, :1]), resets[:, :-1]), 1)


def _refuse_unless_causal(mixer: Mixer) -> None:
    if not mixer.causal:
        raise ValueError(
            f"{type(mixer).__name__} reads the whole sequence at once: it has no state, call it without one"
        )
