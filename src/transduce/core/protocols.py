"""The contracts between the parts. Read this page and you can write a layer, a decoder, a loss or a search.

B batch, T time, U target length, S memory length, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Mapping, Protocol, Sequence

import torch
from torch import Tensor, nn

from .dist import Dist
from .seq import Batch, Seq
from .state import State


class Mixer(nn.Module, ABC):
    """A sequence to a sequence of the same length, (B,T,D) -> (B,T,D).

    ``causal`` and ``lookahead``: output t reads inputs up to t + lookahead; a causal mixer has lookahead 0, a
    mixer that reads everything has lookahead None. ``bytes_per_step``: how much the live state of one row
    grows with each step, 0 for a constant state.
    """

    causal: bool = True
    lookahead: int | None = 0
    bytes_per_step: int = 0

    @abstractmethod
    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        """The state before the first step. ``capacity``: steps to reserve room for, where that matters."""

    @abstractmethod
    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Process a chunk of any length T >= 1. State in, state out; None in, None out.

        x: (B,T,D). mask: (B,T) bool, False means that the row does not advance at this step; what x holds
        there (NaN included) has no influence, and the output there is unspecified. resets: (B,T) bool, True
        restarts the row's history at this step, which then is its first one. ``state=None`` computes the
        outputs of a fresh state without building one (training); pass ``init_state(B)`` to be given a state
        back. A mixer that is not causal raises ValueError for a state.
        """


class Cell(nn.Module, ABC):
    """The mathematics of one step of a recurrence, written once; :class:`transduce.nn.Recurrence` runs it."""

    @abstractmethod
    def init_state(self, batch: int) -> State: ...

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensor:
        """Everything that does not depend on the state, for all time at once: (B,T,D) -> (B,T,P)."""

    @abstractmethod
    def step(self, pre: Tensor, state: State) -> State:
        """One step: (B,P) and the state before it -> the state after it."""

    @abstractmethod
    def output(self, state: State) -> Tensor:
        """(B,H), what the layer shows of a state."""


class Encoder(nn.Module, ABC):
    """Source -> memory. ``rate``: memory steps per source step; ``lookahead`` as for a mixer."""

    rate: float = 1.0
    lookahead: int | None = None

    @abstractmethod
    def forward(self, source: Seq, state: State = None, *, final: bool = True) -> tuple[Seq, State]:
        """``final``: no more source follows this chunk. Encoders that need the whole source refuse a
        state."""


class Decoder(nn.Module, ABC):
    """Previous symbols and a state -> the distribution of the next symbols.

    It embeds ``prev`` itself, so symbols may be words, memory positions, strokes or frames.
    """

    @abstractmethod
    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> State:
        """The state before the first symbol. All conditioning enters here.

        ``continues=False`` promises that :meth:`forward` is called once with the whole target, so no cache
        for later steps is built (training).
        """

    @abstractmethod
    def forward(self, prev: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Dist, State]:
        """prev: (B,U), U the whole target, a chunk or one step. Scores and the state behind the last step.

        A decoder of texts may also take ``resets`` (B,U) and pass them to its mixers: packed texts
        (:class:`transduce.core.seq.Batch`) are trained on with them.
        """


class Model(nn.Module, ABC):
    """What objectives and searches see of a whole model: begin from a batch, then decode."""

    @abstractmethod
    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State: ...

    @abstractmethod
    def forward(self, prev: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Dist, State]: ...


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sequence: ``ids`` without BOS and EOS, total ``score``, its ``parts`` by scorer."""

    ids: tuple[int, ...]
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    finished: bool = True
    alignment: Tensor | None = None


class Searcher(Protocol):
    """From a batch to n-best lists, best first, one list a row."""

    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]: ...


@dataclass(frozen=True)
class Loss:
    """``total`` to minimise (a scalar tensor) and named ``parts`` to report. ``weight``: symbols behind
    it."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    weight: int = 1


class Objective(Protocol):
    """(model, batch) -> Loss. ``step`` drives schedules, ``generator`` all randomness of the objective."""

    def __call__(
        self, model: Model, batch: Batch, *, step: int, generator: torch.Generator | None = None
    ) -> Loss: ...


@dataclass(frozen=True)
class Claim:
    """A machine-checked expectation: ``metric`` must be ``at_most`` / ``at_least`` the number, and why."""

    metric: str
    reason: str
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )


@dataclass(frozen=True)
class System:
    """A page of the catalogue, built for given data: model, objective, search, training plan, claims."""

    name: str
    model: Model
    objective: Objective
    search: Searcher
    config: Any
    train: Any = None
    expect: Sequence[Claim] = ()
    search_wide: Searcher | None = None
