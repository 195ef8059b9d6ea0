"""Side losses: what a layer wants to be trained on beside the likelihood of the targets.

A layer writes ``side("ponder", value, mask)`` with one number a position and the positions that count. That
costs one global look-up until an objective collects (:class:`transduce.objectives.WithSide`)::

    with collect() as found:
        model(...)
    found["ponder"]                  # list of scalars with gradient, one a call
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

import torch
from torch import Tensor

_found: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("side", default=None)


def side(name: str, value: Tensor, mask: Tensor | None = None) -> None:
    """Offer the mean of ``value`` (B,T) over the steps where ``mask`` (B,T) is True under ``name``.

    What stands at masked steps (NaN included) has no influence; without a valid step the mean is 0.
    """
    found = _found.get()
    if found is None:
        return
    if mask is None:
        mean = value.mean()
    else:
        valid = torch.where(mask, value, torch.zeros((), dtype=value.dtype, device=value.device))
        mean = valid.sum() / mask.sum().clamp_min(1)
    found.setdefault(name, []).append(mean)


def collecting() -> bool:
    """True when somebody collects: a layer may skip work that serves its side loss alone otherwise."""
    return _found.get() is not None


@contextmanager
def collect() -> Iterator[dict[str, list[Tensor]]]:
    """Collect what the layers offer while the block runs, by name."""
    token = _found.set({})
    try:
        yield _found.get()
    finally:
        _found.reset(token)
