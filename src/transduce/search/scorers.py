"""What a beam search adds to the model's score: lengths, coverage, repetition, other models, constraints."""

from __future__ import annotations

from abc import ABC
from typing import Callable, Sequence

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.core.errors import UserError
from transduce.core.protocols import Model
from transduce.core.seq import EOS, UNK, Batch
from transduce.core.state import State

from .limits import NEVER, device_of

FIRST = UNK + 1
"""The id of the first position of a source, where symbols are positions."""


class StepScorer(ABC):
    """Scores every continuation of every hypothesis, with a state of its own that follows the beam.

    ``name``: its part in :class:`Hypothesis.parts`. ``never_positive``: no score it gives is above 0, which
    lets the beam stop early. ``attention``: name pattern of tapped attention weights it wants to see, or
    None. Rows are hypotheses (R).
    """

    name: str
    never_positive: bool = True
    attention: str | None = None

    def start(self, batch: Batch, rows: int) -> State:
        """The state of ``rows`` hypotheses, those of one source together."""
        return ()

    def score(self, ids: Tensor, state: State, num_symbols: int) -> tuple[Tensor | None, State]:
        """The symbols (R,) just chosen (BOS first) -> what to add for each next symbol, (R,V) or (R,1) or
        None."""
        return None, state

    def observe(self, weights: Tensor, state: State) -> State:
        """See the attention weights (R,S) of the step that is being scored."""
        return state

    def finish(self, state: State) -> Tensor | None:
        """What a hypothesis that ends at this step gains besides, (R,) or None."""
        return None


class LengthPenalty:
    """How scores of different lengths are compared: score / ((5 + n) / 6)^alpha + reward * n, EOS counted
    in n.

    Wu et al. 2016 (arXiv 1609.08144, section 7). ``alpha=0`` with ``reward=0`` compares sums of
    log-probabilities.
    """

    def __init__(self, alpha: float = 0.6, reward: float = 0.0) -> None:
        if alpha < 0:
            raise UserError(f"A length penalty needs alpha >= 0, got {alpha}; reward < 0 shortens answers.")
        self.alpha, self.reward = alpha, reward

    @property
    def is_neutral(self) -> bool:
        """True when scores are left as they are."""
        return self.alpha == 0 and self.reward == 0

    def __call__(self, score: Tensor, length: int) -> Tensor:
        return score / ((5 + length) / 6) ** self.alpha + self.reward * length

    def best_case(self, score: Tensor, length: int, limit: int | Tensor) -> Tensor:
        """The most that a live hypothesis of this score and length can reach by ``limit`` symbols, if steps
        never score above 0: its score stays, and the kinder of the two extreme lengths counts."""
        latest = torch.as_tensor(limit, device=score.device)
        shortest, longest = score / ((6 + length) / 6) ** self.alpha, score / ((5 + latest) / 6) ** self.alpha
        return torch.maximum(shortest, longest) + self.reward * (latest if self.reward > 0 else length + 1)


class CoveragePenalty(StepScorer):
    """beta * sum_s log(min(sum_u a_us, 1)), given when a hypothesis ends: source that was not attended to
    costs.

    Wu et al. 2016 (section 7). Valid source positions only; a position's sum counts as 1e-6 at least.
    Weights are averaged over heads and over the layers whose tapped name matches the pattern ``attention``.
    """

    name = "coverage"

    def __init__(self, beta: float = 0.2, attention: str = "*attend.weights") -> None:
        if beta < 0:
            raise UserError(f"A coverage penalty needs beta >= 0, got {beta}.")
        self.beta, self.attention = beta, attention

    def start(self, batch: Batch, rows: int) -> State:
        if batch.source is None:
            raise UserError("A coverage penalty needs sources; leave it out for a language model.")
        valid = batch.source.valid()
        return {
            "valid": states.Shared(valid, rows // batch.size),
            "seen": torch.zeros(rows, valid.shape[1], device=valid.device),
        }

    def observe(self, weights: Tensor, state: State) -> State:
        if weights.shape != state["seen"].shape:
            raise UserError(
                f"A coverage penalty needs {state['seen'].shape[-1]} weights, one a source symbol, but "
                f"{weights.shape[-1]} were recorded; give it the name pattern of the attention to the source."
            )
        return {**state, "seen": state["seen"] + weights}

    def finish(self, state: State) -> Tensor:
        logs = state["seen"].clamp(1e-6, 1.0).log()
        return self.beta * torch.where(state["valid"].flat(), logs, torch.zeros_like(logs)).sum(-1)


def _no_history(batch: Batch, rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.long, device=device_of(batch))


class BlockNGrams(StepScorer):
    """No sequence of ``n`` symbols twice in one hypothesis (Paulus et al. 2018, section 2.5)."""

    name = "block"

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise UserError(f"Blocked n-grams have at least one symbol, got n = {n}.")
        self.n = n

    def start(self, batch: Batch, rows: int) -> State:
        return _no_history(batch, rows)

    def score(self, ids: Tensor, state: State, num_symbols: int) -> tuple[Tensor | None, State]:
        history = torch.cat((state, ids[:, None]), 1)  # begins with BOS, which never repeats
        length, n = history.shape[1], self.n
        if length < n:
            return None, history
        grams = history.unfold(1, n, 1)  # (R, length-n+1, n)
        same = (grams[:, :, : n - 1] == history[:, None, length - n + 1 :]).all(-1)
        hits = torch.zeros(len(ids), num_symbols, device=ids.device)
        hits.scatter_add_(1, grams[:, :, n - 1], same.float())
        return torch.where(hits > 0, NEVER, 0.0), history


class Fusion(StepScorer):
    """Shallow fusion: weight * log p_other(y | y_<u) of another model over the same symbols.

    Gulcehre et al. 2015 (arXiv 1503.03535, section 4.1). A negative weight subtracts the other model, whose
    log-probabilities then count as -30 at least, so that what it excludes does not win; the beam then cannot
    stop early. Two fusions in one beam need different names.
    """

    def __init__(self, model: Model, weight: float = 0.3, name: str = "lm") -> None:
        self.model, self.weight, self.name = model, weight, name
        self.never_positive = weight >= 0

    def start(self, batch: Batch, rows: int) -> State:
        return states.expand(self.model.start(batch), rows // batch.size)

    def score(self, ids: Tensor, state: State, num_symbols: int) -> tuple[Tensor, State]:
        dist, state = self.model(ids[:, None], state)
        scores = dist.scores[:, -1]
        if self.weight <= 0:
            scores = scores.clamp_min(-30.0)  # neither 0 * -inf nor a bonus without bounds
        return self.weight * scores, state


class Constrain(StepScorer):
    """Only the symbols that ``allowed(history, sources)`` permits, (R,V) bool.

    ``history`` (R,u): each hypothesis so far, BOS first. ``sources`` (R,): the row of the batch it belongs
    to. A source all of whose hypotheses run into a step where nothing is allowed gets the shorter list, or
    none.
    """

    name = "constraint"

    def __init__(self, allowed: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.allowed = allowed

    def start(self, batch: Batch, rows: int) -> State:
        sources = torch.arange(batch.size, device=device_of(batch)).repeat_interleave(rows // batch.size)
        return {"history": _no_history(batch, rows), "sources": sources}

    def score(self, ids: Tensor, state: State, num_symbols: int) -> tuple[Tensor, State]:
        history = torch.cat((state["history"], ids[:, None]), 1)
        permitted = self.allowed(history, state["sources"])
        return torch.where(permitted, 0.0, NEVER), {**state, "history": history}


class EachOnce(StepScorer):
    """Only permutations: every position of the source exactly once, and the end when none is left.

    For models whose symbols are positions in the source, position k with the id k + 3: tours, orders. Vinyals et al.
    2015 (arXiv 1506.03134, section 4.3) restrict the beam like this. ``max_length`` must leave room for the whole
    source and its end.
    """

    name = "once"

    def start(self, batch: Batch, rows: int) -> State:
        if batch.source is None:
            raise UserError("Visiting each position once needs sources; leave it out for a language model.")
        left = torch.zeros(batch.size, FIRST + batch.source.steps, dtype=torch.bool, device=device_of(batch))
        left[:, FIRST:] = batch.source.valid()
        return left.repeat_interleave(rows // batch.size, 0)

    def score(self, ids: Tensor, state: Tensor, num_symbols: int) -> tuple[Tensor, Tensor]:
        if num_symbols != state.shape[1]:
            raise UserError(
                "Visiting each position once needs a model that points into its source, such as pointer-networks."
            )
        left = state.scatter(1, ids[:, None], False)  # BOS is no position and is never left
        allowed = left.clone()
        allowed[:, EOS] = ~left.any(1)
        return torch.where(allowed, 0.0, NEVER), left


class Ensemble(Model):
    """Several models as one.

    "prob": p = sum_i w_i p_i. "log": log p = sum_i w_i log p_i, renormalised. The models share one
    vocabulary; each keeps its own state. ``weights`` are above 0 and sum to one; equal by default.
    """

    def __init__(
        self, models: Sequence[Model], weights: Sequence[float] | None = None, mode: str = "prob"
    ) -> None:
        super().__init__()
        if not models:
            raise UserError("An ensemble needs at least one model.")
        if mode not in ("prob", "log"):
            raise UserError(f'The mode of an ensemble is "prob" or "log", not {mode!r}.')
        given = [1.0 / len(models)] * len(models) if weights is None else list(weights)
        if len(given) != len(models) or abs(sum(given) - 1.0) > 1e-6 or min(given) <= 0:
            raise UserError(
                f"The weights of {len(models)} models are as many numbers above 0 that sum to 1, got {given}."
            )
        self.models = torch.nn.ModuleList(models)
        self.weights, self.mode = given, mode

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State:
        return tuple(m.start(batch, capacity=capacity, continues=continues) for m in self.models)

    def forward(self, prev: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Categorical, State]:
        found = [m(prev, s, mask=mask) for m, s in zip(self.models, state)]
        sizes = {dist.scores.shape[-1] for dist, _ in found}
        if len(sizes) > 1:
            raise UserError(f"The models of an ensemble need one vocabulary, got sizes {sorted(sizes)}.")
        scores = torch.stack([dist.scores for dist, _ in found])
        weights = torch.tensor(self.weights, dtype=scores.dtype, device=scores.device)
        weights = weights.view(-1, *([1] * (scores.dim() - 1)))
        mixed = (scores + weights.log()).logsumexp(0) if self.mode == "prob" else (weights * scores).sum(0)
        return Categorical(mixed), tuple(s for _, s in found)
