"""Searches that keep one hypothesis a row: greedy and sampling."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import BOS, EOS, Batch

from .limits import MaxLength, device_of, ratio, resolve, row_names, without_special


class Greedy:
    """The most likely symbol at every step, until EOS or ``max_length``.

    ``allow_unknown``: let hypotheses hold the unknown symbol. Each row's result is what it would be alone.
    """

    def __init__(self, max_length: MaxLength = ratio(2.0, 10), *, allow_unknown: bool = False) -> None:
        self.max_length, self.allow_unknown = max_length, allow_unknown

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        limit = resolve(self.max_length, batch)
        choose = lambda scores, step, rows: scores.argmax(-1)
        state = model.start(batch, capacity=limit)
        ids, total, ended = decode(model, state, batch.size, limit, choose, self.allow_unknown, device_of(batch))
        return [[h] for h in hypotheses(ids, total, ended)]


class Sample:
    """Ancestral sampling: y_u ~ p(. | y_<u), sharpened and cut.

    Scores are divided by ``temperature``; of the result only the ``top_k`` best symbols and the fewest symbols that hold ``top_p``
    of the probability stay (Holtzman et al. 2020, section 3.1). Every row draws from its own stream, given by (seed, row,
    sample), so a result does not depend on the batch around it; the row is ``Batch.rows`` where set, else
    the position in the batch. Returned score: log-probability under the unchanged model.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        num_samples: int = 1,
        max_length: MaxLength = ratio(2.0, 10),
        seed: int = 0,
        allow_unknown: bool = False,
    ) -> None:
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}; use Greedy for the limit 0")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.num_samples, self.max_length, self.seed = num_samples, max_length, seed
        self.allow_unknown = allow_unknown

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        limit, n = resolve(self.max_length, batch), self.num_samples
        device = device_of(batch)
        uniform = torch.stack([
            self._stream(row, sample, limit) for row in row_names(batch) for sample in range(n)
        ]).to(device)

        def choose(scores: Tensor, step: int, rows: Tensor) -> Tensor:
            p = self._filtered(scores / self.temperature).softmax(-1)
            below = p.cumsum(-1)
            drawn = torch.searchsorted(below, uniform[rows, step, None] * below[:, -1:], right=True)[:, 0]
            last = (p > 0).to(p.dtype).cumsum(-1).argmax(-1)  # rounding must not reach behind the support
            return torch.minimum(drawn, last)

        state = states.expand(model.start(batch, capacity=limit), n)
        ids, total, ended = decode(model, state, batch.size * n, limit, choose, self.allow_unknown, device)
        flat = hypotheses(ids, total, ended)
        return [sorted(flat[i : i + n], key=lambda h: -h.score) for i in range(0, len(flat), n)]

    def _stream(self, row: int, sample: int, limit: int) -> Tensor:
        """The row's uniform numbers; a longer limit continues them."""
        key = (self.seed * 1_000_003 + row) * 1_000_003 + sample
        return torch.rand(limit, generator=torch.Generator().manual_seed(key % (2**63)), dtype=torch.float64).float()

    def _filtered(self, scores: Tensor) -> Tensor:
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            worst = scores.topk(self.top_k, -1).values[..., -1:]
            scores = scores.masked_fill(scores < worst, float("-inf"))
        if self.top_p is not None and self.top_p < 1.0:
            ordered, index = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
            cut = (ordered.cumsum(-1) - ordered) >= self.top_p  # mass before the symbol is enough already
            scores = scores.masked_fill(torch.zeros_like(cut).scatter(-1, index, cut), float("-inf"))
        return scores


Choose = Callable[[Tensor, int, Tensor], Tensor]
"""(scores (R,V), step, rows (R,)) -> chosen ids (R,)."""


def decode(
    model: Model, state: states.State, size: int, limit: int, choose: Choose, allow_unknown: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``size`` rows until each has ended or the limit is reached; rows that ended leave the computation.

    Returns ids (size, limit) filled with EOS behind the end, summed log-probabilities (size,), and which rows ended.
    """
    out = torch.full((size, limit), EOS, device=device)
    total = torch.zeros(size, device=device)
    ended = torch.zeros(size, dtype=torch.bool, device=device)
    rows = torch.arange(size, device=device)
    previous = torch.full((size,), BOS, device=device)
    for step in range(limit):
        dist, state = model(previous[:, None], state)
        scores = dist.scores[:, -1].float()
        chosen = choose(without_special(scores, allow_unknown), step, rows)
        going = ~ended[rows]
        chosen = torch.where(going, chosen, EOS)
        gained = scores.gather(-1, chosen[:, None])[:, 0]
        total[rows] += torch.where(going, gained, torch.zeros_like(gained))
        out[rows, step] = chosen
        ended[rows] |= chosen == EOS
        live = (~ended[rows]).nonzero()[:, 0]
        if len(live) == 0:
            break
        if len(live) <= 0.75 * len(rows):  # dropping rows copies the state, so it waits until it pays
            state, rows, chosen = states.select(state, live), rows[live], chosen[live]
        previous = chosen
    return out, total, ended


def hypotheses(ids: Tensor, total: Tensor, ended: Tensor) -> list[Hypothesis]:
    """Rows of ids with EOS behind their end -> hypotheses with the model's log-probability as the score."""
    lengths = (ids == EOS).int().argmax(-1)
    lengths = torch.where(ended, lengths, ids.shape[1]).tolist()
    return [
        Hypothesis(tuple(row[:n]), score, {"model": score}, finished)
        for row, n, score, finished in zip(ids.tolist(), lengths, total.tolist(), ended.tolist())
    ]
