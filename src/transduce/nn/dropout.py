"""Dropout that is right under stepping.

A fresh mask for every position (``Pointwise(nn.Dropout(p))``) needs no state. One mask for a whole sequence
does: the chunks of a sequence must see the same mask, and so must every beam that continues it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transduce.core.protocols import Mixer
from transduce.core.state import State

from .masking import valid_resets


class SequenceDropout(Mixer):
    """Variational dropout: y_t = x_t * m / (1 - p), one mask m ~ Bernoulli(1 - p) a row for all of its steps.

    The mask is drawn by ``init_state`` and carried in the state (B,dim), so training in chunks equals
    training on the whole sequence. A reset draws a new mask. In evaluation the layer is the identity, and a
    state that is begun then is all ones. Gal and Ghahramani 2016, section 4. ``generator``: source of the
    randomness; None is torch's own.
    """

    def __init__(self, dim: int, p: float = 0.1, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"the dropout probability must be in [0, 1), not {p}")
        self.dim, self.p, self.generator = dim, p, generator
        self.register_buffer("one", torch.ones(()), persistent=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self._draw(batch)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if not self.training:
            return x, state
        keep = self._draw(x.shape[0]) if state is None else state
        if resets is None:
            used = keep[:, None]
        else:
            # (B,T), which of the histories within this chunk a step belongs to; each draws its own mask.
            history = valid_resets(resets, mask).cumsum(1)
            draws = [keep, *(self._draw(x.shape[0]) for _ in range(int(history.max())))]
            rows = torch.arange(x.shape[0], device=x.device)
            used = torch.stack(draws, 1)[rows[:, None], history]
            keep = used[:, -1]
        return x * used, None if state is None else keep

    def _draw(self, batch: int) -> Tensor:
        ones = self.one.expand(batch, self.dim).clone()
        if not self.training or self.p == 0.0:
            return ones
        return ones.bernoulli_(1.0 - self.p, generator=self.generator) / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"{self.dim}, p={self.p}"
