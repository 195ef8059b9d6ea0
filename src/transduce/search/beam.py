"""Beam search over any model, with scorers, n-best lists and exact early stopping."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Mapping, Sequence

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import BOS, EOS, Batch
from transduce.core.state import State
from transduce.core.tap import record

from .limits import NEVER, WORTH_DROPPING, MaxLength, device_of, forbid_special, ratio, refuse_nan, resolve
from .pool import Pool, Step, best_candidates, read_back
from .scorers import LengthPenalty, StepScorer


class Beam:
    """Keeps the ``width`` best unfinished hypotheses of every source.

    At each step the ``width`` best continuations are taken, by the sum of all parts; those that end move to
    a pool of finished ones, ranked by ``length(sum of all parts, n)`` with n the number of symbols, EOS
    included. Among equal scores the continuation of the better hypothesis comes first, then the lower
    symbol id.

    A source is done when no hypothesis is left to continue, or when it has ``num_best`` finished ones and
    the last of them is at least as good as the best case of every live one
    (:meth:`LengthPenalty.best_case`). So stopping early never changes the result. The bound needs parts
    that never grow; with a scorer that is not ``never_positive`` the search runs to ``max_length``.
    Hypotheses cut off there fill up the list behind the finished ones.

    Width 1 is greedy search; a width that holds everything is exhaustive. ``scorers``: see
    :mod:`transduce.search.scorers`. ``Hypothesis.parts`` holds the sum of the model's scores as "model",
    that of each scorer under its name, and where ``length`` changes scores, what it added as "length";
    together they are the score.
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
            raise UserError(f"A beam needs width >= num_best >= 1, got {width} and {num_best}.")
        names = [s.name for s in scorers]
        if len({*names, "model", "length"}) != len(names) + 2:
            raise UserError(
                'The scorers of a beam need different names, none of them "model" or "length", got '
                f"{', '.join(names)}; set the attribute `name` of one."
            )
        self.width, self.num_best, self.max_length = width, num_best, max_length
        self.length, self.scorers, self.allow_unknown = length, tuple(scorers), allow_unknown

    @torch.no_grad()
    def __call__(self, model: Model, batch: Batch) -> list[list[Hypothesis]]:
        return _BeamRun(self, model, batch).run()


@dataclass
class _Gains:
    """What one step adds to each part: ``steps`` (G,W*V) or (G,W*1) by part, ``at_end`` (G,W) by part; None
    for 0."""

    steps: list[Tensor | None]
    at_end: list[Tensor | None]


class _BeamRun:
    """One search. Sources that are done leave the computation; ``sources`` (G,) are the batch rows still
    searched.

    ``sums`` (G,W): total of each live hypothesis, -inf for an empty slot. ``parts`` (G,W,P): what it is
    made of.
    """

    def __init__(self, beam: Beam, model: Model, batch: Batch) -> None:
        self.beam, self.model = beam, model
        self.limits, self.longest = resolve(beam.max_length, batch)
        size, width, device = batch.size, beam.width, device_of(batch)
        self.state = states.expand(model.start(batch, capacity=self.longest), width)
        self.extra: list[State] = [s.start(batch, size * width) for s in beam.scorers]
        self.sources = torch.arange(size, device=device)
        # Sums over many steps in float64, so that a long hypothesis's score is that of its symbols.
        self.sums = torch.full((size, width), NEVER, dtype=torch.float64, device=device)
        self.sums[:, 0] = 0.0
        self.parts = self.sums.new_zeros(size, width, 1 + len(beam.scorers))
        self.previous = torch.full((size * width,), BOS, device=device)
        self.pool = Pool.empty(self.sums, beam.num_best, self.parts.shape[-1])
        self.steps: list[Step] = []
        self.can_stop_early = all(s.never_positive for s in beam.scorers)

    def run(self) -> list[list[Hypothesis]]:
        with ExitStack() as stack:
            seen = [
                None if s.attention is None else stack.enter_context(record(self.model, s.attention))
                for s in self.beam.scorers
            ]
            for step in range(self.longest):
                self._step(step, seen)
                if not self._keep_searching(step + 1):
                    break
        return self._collect()

    def _step(self, step: int, seen: Sequence[dict[str, list[Tensor]] | None]) -> None:
        total, gains = self._score_continuations(seen)  # (G,W,V)
        num_symbols = total.shape[-1]
        best, flat = best_candidates(total.flatten(1), self.beam.width)
        refuse_nan(best)
        parents, chosen = flat // num_symbols, flat % num_symbols
        valid, ends = best > NEVER, chosen == EOS
        self._add_to_parts(gains, parents, chosen, valid)
        self.steps.append(Step(self.sources, chosen, parents))

        sums = self.parts.sum(-1)
        at_limit = (self.limits[self.sources] == step + 1)[:, None]
        complete = valid & (ends | at_limit)
        if bool(complete.any()):
            scores = torch.where(complete, self.beam.length(sums, step + 1), NEVER)
            self.pool.offer(self.sources, scores, complete & ends, step, self.parts)
        self.sums = torch.where(valid & ~complete, sums, NEVER)
        self.previous = chosen.flatten()
        if self.beam.width > 1:
            self.state = states.reorder(self.state, parents)
            self.extra = [states.reorder(e, parents) for e in self.extra]

    def _score_continuations(self, seen: Sequence[dict[str, list[Tensor]] | None]) -> tuple[Tensor, _Gains]:
        """The totals (G,W,V) of every continuation, and what each part gains by it."""
        groups, width = self.sums.shape
        dist, self.state = self.model(self.previous[:, None], self.state)
        scores = dist.scores[:, -1]  # (G*W,V)
        rows, num_symbols = scores.shape
        gains = _Gains([scores.reshape(groups, -1)], [None])
        total = scores.reshape(groups, width, num_symbols) + self.sums[..., None].to(scores.dtype)
        for i, (scorer, weights) in enumerate(zip(self.beam.scorers, seen)):
            if weights is not None:
                self.extra[i] = scorer.observe(_mean_weights(weights), self.extra[i])
                weights.clear()
            gained, self.extra[i] = scorer.score(self.previous, self.extra[i], num_symbols)
            if gained is not None:
                if gained.shape not in ((rows, num_symbols), (rows, 1)):
                    raise UserError(
                        f'The scorer "{scorer.name}" gave scores of shape {tuple(gained.shape)} where the '
                        f"model has {num_symbols} symbols; both need the same vocabulary."
                    )
                total += gained.view(groups, width, -1)
            ending = scorer.finish(self.extra[i])
            if ending is not None:
                total[..., EOS] += ending.view(groups, width)
            gains.steps.append(None if gained is None else gained.reshape(groups, -1))
            gains.at_end.append(None if ending is None else ending.view(groups, width))
        return forbid_special(total, self.beam.allow_unknown), gains

    def _add_to_parts(self, gains: _Gains, parents: Tensor, chosen: Tensor, valid: Tensor) -> None:
        group, ends = torch.arange(len(parents), device=parents.device)[:, None], chosen == EOS
        parts = self.parts[group, parents]
        for p, (gained, ending) in enumerate(zip(gains.steps, gains.at_end)):
            if gained is not None:
                per_slot = gained.shape[1] // self.beam.width
                parts[..., p] += gained.gather(1, parents * per_slot + (chosen if per_slot > 1 else 0))
            if ending is not None:
                parts[..., p] += torch.where(ends, ending.gather(1, parents), torch.zeros_like(ending))
        self.parts = torch.where(valid[..., None], parts, torch.zeros_like(parts))

    def _keep_searching(self, length: int) -> bool:
        """Drop the sources that are done; False when none is left."""
        live = self.sums.max(1).values
        going = live > NEVER
        if self.can_stop_early:
            bound = self.beam.length.best_case(live, length, self.limits[self.sources])
            going &= ~(self.pool.ended[self.sources, -1] & (self.pool.score[self.sources, -1] >= bound))
        keep = going.nonzero()[:, 0]
        if len(keep) == 0:
            return False
        if len(keep) <= WORTH_DROPPING * len(going):
            width = self.beam.width
            self.state = states.select_groups(self.state, keep, width)
            self.extra = [states.select_groups(e, keep, width) for e in self.extra]
            self.previous = self.previous[states.group_rows(keep, width)]
            self.sources, self.sums, self.parts = self.sources[keep], self.sums[keep], self.parts[keep]
        else:
            self.sums = torch.where(going[:, None], self.sums, NEVER)
        return True

    def _collect(self) -> list[list[Hypothesis]]:
        """One transfer of everything, then plain numbers."""
        ids = read_back(self.steps, self.pool).tolist()
        lengths = (self.pool.step + 1 - self.pool.ended.long()).tolist()
        pool = self.pool
        facts = zip(ids, lengths, pool.score.tolist(), pool.parts.tolist(), pool.ended.tolist())
        return [
            [
                Hypothesis(tuple(symbols[:n]), score, self._named(parts, score), ended)
                for symbols, n, score, parts, ended in zip(*row)
                if score > NEVER
            ]
            for row in facts
        ]

    def _named(self, parts: Sequence[float], score: float) -> Mapping[str, float]:
        named = dict(zip(["model", *(s.name for s in self.beam.scorers)], parts))
        return named if self.beam.length.is_neutral else {**named, "length": score - sum(parts)}


def _mean_weights(seen: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """Recorded attention (R,1,S) or (R,H,1,S) -> (R,S), averaged over heads and layers."""
    flat = [w.mean(1) if w.dim() == 4 else w for calls in seen.values() for w in calls]
    if not flat:
        raise UserError(
            "A coverage penalty needs a model with attention to its source, but none was recorded; leave the "
            "penalty out, or give it the name pattern of the model's attention weights."
        )
    return torch.stack([w[:, -1] for w in flat]).mean(0)
