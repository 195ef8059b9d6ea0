"""Beam search over any model, with scorers, n-best lists and exact early stopping."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.dist import Dist
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import BOS, EOS, Batch
from transduce.core.state import State
from transduce.core.tap import record

from .limits import MaxLength, device_of, ratio, resolve, without_special
from .scorers import LengthPenalty, StepScorer

NEVER = float("-inf")


@dataclass
class _Pool:
    """Finished hypotheses of all sources: normalised score (B,W), ids (B,W,limit), length and parts."""

    score: Tensor
    ids: Tensor
    length: Tensor
    parts: Tensor

    def add(self, sources: Tensor, score: Tensor, ids: Tensor, length: int, parts: Tensor) -> None:
        """Offer (n,W) hypotheses of some sources; the best W of each stay. Equal scores: the older one first."""
        width = self.score.shape[1]
        both = torch.cat((self.score[sources], score), 1)
        kept, index = both.sort(dim=1, descending=True, stable=True)
        index = index[:, :width]
        pick = lambda old, new: torch.cat((old[sources], new), 1).gather(
            1, index.view(*index.shape, *([1] * (new.dim() - 2))).expand(-1, -1, *new.shape[2:])
        )
        self.ids[sources] = pick(self.ids, ids)
        self.length[sources] = pick(self.length, torch.full_like(index, length))
        self.parts[sources] = pick(self.parts, parts)
        self.score[sources] = kept[:, :width]


class Beam:
    """Keeps the ``width`` best unfinished hypotheses of every source.

    At each step the ``width`` best continuations are taken; those that end move to a pool of finished ones, ranked by
    ``length(sum of all parts, n)`` with n the number of symbols, EOS included. A source is done when nothing is left
    to continue, or when its ``num_best`` finished hypotheses beat the best case of every live one
    (:meth:`LengthPenalty.best_case`; only if no scorer can give a positive score). Hypotheses cut off at ``max_length``
    fill up the list behind the finished ones. Width 1 is greedy search; a width that holds everything is exhaustive.

    ``scorers``: see :mod:`transduce.search.scorers`. Their sums are reported in ``Hypothesis.parts`` beside "model".
    """

    def __init__(
        self,
        width: int = 5,
        *,
        num_best: int = 1,
        max_length: MaxLength = ratio(2.0, 10),
        length: LengthPenalty = LengthPenalty(alpha=0.0),
        scorers: Sequence[StepScorer] = (),
        allow_unknown: bool = False,
    ) -> None:
        if width < 1 or not 1 <= num_best <= width:
            raise ValueError(f"a beam needs width >= num_best >= 1, got width {width} and num_best {num_best}")
        self.width, self.num_best, self.max_length = width, num_best, max_length
        self.length, self.scorers, self.allow_unknown = length, tuple(scorers), allow_unknown
        if len({s.name for s in self.scorers} | {"model"}) != len(self.scorers) + 1:
            raise ValueError("the scorers of a beam need different names, none of them 'model'")

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        return _BeamRun(self, model, batch).run()


class _BeamRun:
    """One search. Sources that are done leave the computation; ``sources`` are the batch rows still searched."""

    def __init__(self, beam: Beam, model: Model, batch: Batch) -> None:
        self.beam, self.model = beam, model
        self.limit = resolve(beam.max_length, batch)
        self.device, width = device_of(batch), beam.width
        size, rows = batch.size, batch.size * width
        new = lambda *shape, fill, dtype=torch.float: torch.full(shape, fill, dtype=dtype, device=self.device)
        self.state = states.expand(model.start(batch, capacity=self.limit), width)
        self.extra: list[State] = [s.start(batch, rows) for s in beam.scorers]
        self.sources = torch.arange(size, device=self.device)
        self.parts = new(size, width, 1 + len(beam.scorers), fill=0.0)
        self.alive = new(size, width, fill=False, dtype=torch.bool)
        self.alive[:, 0] = True
        self.ids = new(size, width, self.limit, fill=EOS, dtype=torch.long)
        self.previous = new(rows, fill=BOS, dtype=torch.long)
        self.pool = _Pool(
            new(size, width, fill=NEVER), self.ids.clone(), new(size, width, fill=0, dtype=torch.long), self.parts.clone()
        )
        self.cut_off: dict[int, list[Hypothesis]] = {}

    def run(self) -> list[list[Hypothesis]]:
        for step in range(self.limit):
            self._step(step)
            if not self._keep_searching(step + 1):
                break
        self._note_cut_off()
        return self._collect()

    def _step(self, step: int) -> None:
        groups, width = len(self.sources), self.beam.width
        gains, at_end = self._gains()  # (G,W,V,P), (G,W,P)
        num_symbols = gains.shape[2]
        total = self.parts.sum(-1)[..., None] + gains.sum(-1)
        total[..., EOS] += at_end.sum(-1)
        total = torch.where(self.alive[..., None], total, NEVER).flatten(1)
        best, flat = total.topk(min(width, total.shape[1]), 1)
        if best.shape[1] < width:  # fewer continuations than the beam is wide
            fill = width - best.shape[1]
            best = torch.cat((best, best.new_full((groups, fill), NEVER)), 1)
            flat = torch.cat((flat, flat.new_zeros(groups, fill)), 1)
        parents, chosen = flat // num_symbols, flat % num_symbols
        group = torch.arange(groups, device=self.device)[:, None]
        ends = chosen == EOS
        self.parts = self.parts[group, parents] + gains[group, parents, chosen]
        self.parts = self.parts + torch.where(ends[..., None], at_end[group, parents], 0.0)
        self.parts = torch.where(torch.isfinite(best)[..., None], self.parts, 0.0)
        self.ids = self.ids[group, parents]
        self.ids[:, :, step] = chosen
        valid = torch.isfinite(best)
        finished = ends & valid
        scores = torch.where(finished, self.beam.length(best, step + 1), NEVER)
        self.pool.add(self.sources, scores, self.ids, step + 1, self.parts)
        self.alive = valid & ~ends
        self.previous = chosen.flatten()
        self.state = states.reorder(self.state, parents)
        self.extra = [states.reorder(e, parents) for e in self.extra]

    def _gains(self) -> tuple[Tensor, Tensor]:
        """What each continuation adds, by part, and what ending adds besides."""
        wanted = [s.attention for s in self.beam.scorers if s.attention is not None]
        with record(self.model, wanted[0]) if wanted else nullcontext({}) as seen:
            dist, self.state = self.model(self.previous[:, None], self.state)
        model_scores = without_special(_last(dist), self.beam.allow_unknown)
        rows, num_symbols = model_scores.shape
        columns, at_end = [model_scores], [model_scores.new_zeros(rows)]
        for i, scorer in enumerate(self.beam.scorers):
            if scorer.attention is not None:
                self.extra[i] = scorer.observe(_mean_weights(seen), self.extra[i])
            gained, self.extra[i] = scorer.score(self.previous, self.extra[i], num_symbols)
            columns.append(torch.zeros_like(model_scores) if gained is None else gained.expand(rows, num_symbols))
            ending = scorer.finish(self.extra[i])
            at_end.append(model_scores.new_zeros(rows) if ending is None else ending)
        shape = (len(self.sources), self.beam.width)
        return torch.stack(columns, -1).unflatten(0, shape), torch.stack(at_end, -1).unflatten(0, shape)

    def _keep_searching(self, length: int) -> bool:
        """Drop the sources that are done; False when none is left."""
        going = self.alive.any(1)
        if all(s.never_positive for s in self.beam.scorers):
            live = torch.where(self.alive, self.parts.sum(-1), NEVER).max(1).values
            bound = self.beam.length.best_case(live, length, self.limit)
            going &= ~(self.pool.score[self.sources, self.beam.num_best - 1] >= bound)
        keep = going.nonzero()[:, 0]
        if len(keep) == 0:
            self.alive = torch.zeros_like(self.alive)
            return False
        if len(keep) <= 0.75 * len(going):
            width = self.beam.width
            rows = states.group_rows(keep, width)
            self.state = states.select_groups(self.state, keep, width)
            self.extra = [states.select_groups(e, keep, width) for e in self.extra]
            self.sources, self.parts, self.alive = self.sources[keep], self.parts[keep], self.alive[keep]
            self.ids, self.previous = self.ids[keep], self.previous[rows]
        else:
            self.alive &= going[:, None]
        return True

    def _note_cut_off(self) -> None:
        """Live hypotheses at the length limit, for sources with too few finished ones."""
        totals = self.parts.sum(-1)
        for g, source in enumerate(self.sources.tolist()):
            found = [
                self._hypothesis(self.ids[g, w], self.limit, float(self.beam.length(totals[g, w], self.limit)), self.parts[g, w], False)
                for w in range(self.beam.width)
                if bool(self.alive[g, w])
            ]
            self.cut_off[source] = sorted(found, key=lambda h: -h.score)

    def _collect(self) -> list[list[Hypothesis]]:
        pool, lists = self.pool, []
        scores, lengths = pool.score.tolist(), pool.length.tolist()
        for b in range(len(scores)):
            found = [
                self._hypothesis(pool.ids[b, w], lengths[b][w] - 1, scores[b][w], pool.parts[b, w], True)
                for w in range(self.beam.num_best)
                if scores[b][w] > NEVER
            ]
            lists.append((found + self.cut_off.get(b, []))[: self.beam.num_best])
        return lists

    def _hypothesis(self, ids: Tensor, length: int, score: float, parts: Tensor, finished: bool) -> Hypothesis:
        names = ["model", *(s.name for s in self.beam.scorers)]
        return Hypothesis(tuple(ids[:length].tolist()), score, dict(zip(names, parts.tolist())), finished)


def _last(dist: Dist) -> Tensor:
    return dist.scores[:, -1].float()


def _mean_weights(seen: dict[str, list[Any]]) -> Tensor:
    """Recorded attention (R,1,S) or (R,H,1,S) -> (R,S), averaged over heads and layers."""
    flat = [w.mean(1) if w.dim() == 4 else w for calls in seen.values() for w in calls]
    if not flat:
        raise ValueError("coverage needs a model with attention to its source; none was recorded")
    return torch.stack([w[:, -1] for w in flat]).mean(0).float()
