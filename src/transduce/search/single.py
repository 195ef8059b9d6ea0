"""Searches that keep one hypothesis a row: greedy and sampling."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import BOS, EOS, Batch

from .limits import (
    NEVER, WORTH_DROPPING, MaxLength, device_of, forbid_special, ratio, refuse_nan, resolve, row_names,
)


class Greedy:
    """The most likely symbol at every step (the lowest id among equals), until EOS or ``max_length``.

    ``allow_unknown``: let hypotheses hold the unknown symbol. Each row's result is what it would be alone.
    """

    def __init__(self, max_length: MaxLength = ratio(2.0, 10), *, allow_unknown: bool = False) -> None:
        self.max_length, self.allow_unknown = max_length, allow_unknown

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        limits, _ = resolve(self.max_length, batch)
        choose = lambda scores, step, rows: scores.argmax(-1)
        return decode(model, batch, limits, choose, copies=1, allow_unknown=self.allow_unknown)


class Sample:
    """Ancestral sampling: y_u ~ p(. | y_<u), sharpened and cut.

    Scores are divided by ``temperature``; of the result only the ``top_k`` best symbols (Fan et al. 2018,
    section 5.4) and the fewest symbols that hold ``top_p`` of the probability stay (Holtzman et al. 2020,
    section 3.1); symbols as good as the last one kept by ``top_k`` stay too. Every hypothesis draws from
    its own stream, given by (seed, row, sample), so a result does not depend on the batch around it; the
    row is ``Batch.rows`` where set, else the position in the batch. The ``num_samples`` of a row come best
    first; their score is the log-probability under the unchanged model.
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
            raise UserError(f"temperature must be above 0, got {temperature}; use Greedy for the limit 0.")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}.")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")
        if num_samples < 1:
            raise UserError(f"num_samples must be at least 1, got {num_samples}.")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.num_samples, self.max_length, self.seed = num_samples, max_length, seed
        self.allow_unknown = allow_unknown

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        (limits, longest), n = resolve(self.max_length, batch), self.num_samples
        streams = [self._stream(row, sample, longest) for row in row_names(batch) for sample in range(n)]
        uniform = torch.stack(streams).to(device_of(batch))

        def choose(scores: Tensor, step: int, rows: Tensor) -> Tensor:
            # The distribution function is summed in float64: float32 would distort large vocabularies.
            below = self._filtered(scores / self.temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
            total = below[:, -1:]
            # Below the total even after rounding, so that no symbol behind the support can be drawn.
            largest = total.nextafter(torch.zeros_like(total))
            target = torch.minimum(uniform[rows, step, None] * total, largest)
            drawn = torch.searchsorted(below, target, right=True)[:, 0]
            # Nothing to draw from: all scores are -inf, or one is NaN. `decode` sees which by the best score.
            return torch.where(total[:, 0].isnan(), scores.argmax(-1), drawn)

        found = decode(model, batch, limits, choose, copies=n, allow_unknown=self.allow_unknown)
        return [sorted(row, key=lambda h: -h.score) for row in found]

    def _stream(self, row: int, sample: int, limit: int) -> Tensor:
        """The hypothesis's uniform numbers; a longer limit continues them."""
        digest = hashlib.blake2b(f"{self.seed},{row},{sample}".encode(), digest_size=7).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))
        return torch.rand(limit, generator=generator, dtype=torch.float64, device="cpu")

    def _filtered(self, scores: Tensor) -> Tensor:
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            worst = scores.topk(self.top_k, -1).values[..., -1:]
            scores = scores.masked_fill(scores < worst, NEVER)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, index = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
            cut = (ordered.cumsum(-1) - ordered) >= self.top_p  # mass before the symbol is enough already
            scores = scores.masked_fill(torch.zeros_like(cut).scatter(-1, index, cut), NEVER)
        return scores


Choose = Callable[[Tensor, int, Tensor], Tensor]
"""(scores (R,V), step, rows (R,)) -> chosen ids (R,)."""


def decode(
    model: Model, batch: Batch, limits: Tensor, choose: Choose, *, copies: int, allow_unknown: bool
) -> list[list[Hypothesis]]:
    """Continue ``copies`` hypotheses of every row until each has ended or is as long as its row's limit.

    Rows all of whose copies are done leave the computation. A hypothesis that no symbol can continue (every
    score is -inf) stops there, unfinished.
    """
    run = _Run.begin(model, batch, limits, copies)
    for step in range(int(limits.max())):
        if not run.advance(model, step, choose, allow_unknown):
            break
    return run.collect()


@dataclass
class _Run:
    """The hypotheses of one search. ``out``, ``total``, ``length`` and ``ended`` hold all of them; ``rows``
    says which are still in ``state``; ``going`` which of those are not done."""

    copies: int
    limits: Tensor
    state: states.State
    previous: Tensor
    rows: Tensor
    going: Tensor
    out: Tensor
    total: Tensor
    length: Tensor
    ended: Tensor

    @classmethod
    def begin(cls, model: Model, batch: Batch, limits: Tensor, copies: int) -> _Run:
        device, size, longest = device_of(batch), batch.size * copies, int(limits.max())
        state = model.start(batch, capacity=longest)
        return cls(
            copies=copies,
            limits=limits.repeat_interleave(copies),
            state=states.expand(state, copies) if copies > 1 else state,
            previous=torch.full((size,), BOS, device=device),
            rows=torch.arange(size, device=device),
            going=torch.ones(size, dtype=torch.bool, device=device),
            out=torch.full((size, longest), EOS, device=device),
            total=torch.zeros(size, dtype=torch.float64, device=device),
            length=torch.zeros(size, dtype=torch.long, device=device),
            ended=torch.zeros(size, dtype=torch.bool, device=device),
        )

    def advance(self, model: Model, step: int, choose: Choose, allow_unknown: bool) -> bool:
        """One symbol for every hypothesis that goes on; False when none is left."""
        dist, self.state = model(self.previous[:, None], self.state)
        scores = forbid_special(dist.scores[:, -1].clone(), allow_unknown)
        chosen = choose(scores, step, self.rows)
        gained = scores.gather(-1, chosen[:, None])[:, 0]
        possible = gained != NEVER
        taken = self.going & possible
        chosen = torch.where(taken, chosen, EOS)
        self.total[self.rows] += torch.where(taken, gained, torch.zeros_like(gained)).double()
        self.out[self.rows, step] = chosen
        ends = chosen == EOS
        self.ended[self.rows] |= taken & ends
        self.length[self.rows] += taken & ~ends
        self.going = taken & ~ends & (self.limits[self.rows] > step + 1)
        self.previous = chosen
        return self._drop_done()

    def _drop_done(self) -> bool:
        live = self.going.view(-1, self.copies).any(1).nonzero()[:, 0]
        if len(live) * self.copies <= WORTH_DROPPING * len(self.rows):
            if len(live) == 0:
                return False
            kept = states.group_rows(live, self.copies)
            self.state = states.select_groups(self.state, live, self.copies)
            self.rows, self.previous, self.going = self.rows[kept], self.previous[kept], self.going[kept]
        return True

    def collect(self) -> list[list[Hypothesis]]:
        refuse_nan(self.total)
        facts = zip(self.out.tolist(), self.length.tolist(), self.total.tolist(), self.ended.tolist())
        flat = [Hypothesis(tuple(ids[:n]), score, {"model": score}, ended) for ids, n, score, ended in facts]
        return [flat[i : i + self.copies] for i in range(0, len(flat), self.copies)]
