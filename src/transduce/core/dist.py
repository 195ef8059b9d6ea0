"""Output distributions. A head is a module ``h -> Dist``; losses and searches read nothing else of a
model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


@runtime_checkable
class Dist(Protocol):
    """A distribution over one symbol (or frame, point, ...) for every position of a (B,U) grid."""

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-probability of ``y``, one number a position: (B,U)."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    @property
    def scores(self) -> Tensor:
        """(B,U,V) normalised log-probabilities, where the support is finite."""


@dataclass(frozen=True)
class Categorical:
    """p(y = v) = softmax(logits)_v over the last dimension. ``logits``: (..., V)."""

    logits: Tensor

    @property
    def scores(self) -> Tensor:
        return F.log_softmax(self.logits.float() if self.logits.dtype in _HALF else self.logits, -1)

    def log_prob(self, y: Tensor) -> Tensor:
        logits = self.logits.float() if self.logits.dtype in _HALF else self.logits
        return -F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        p = self.scores.exp()
        flat = torch.multinomial(p.flatten(0, -2), 1, generator=generator)
        return flat.view(p.shape[:-1])

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def select(self, index: Any) -> Categorical:
        """The distribution at an index of the leading dimensions, e.g. ``d.select((slice(None), -1))``."""
        return Categorical(self.logits[index])


_HALF = (torch.float16, torch.bfloat16)
