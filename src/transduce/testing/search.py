"""The laws of search, checked on a model: what holds for every state kind, or a search is broken.

1. *beam of one*: it is greedy search.
2. *batch*: every row gets the result it gets alone, from greedy search, beam search and sampling.
3. *full beam*: a beam that holds everything finds what enumeration finds, scored by teacher forcing.
4. *scores*: the score of a hypothesis is the model's log-probability of it; lists are sorted and hold nothing
   twice.
5. *early stop*: stopping a beam early, and dropping rows that are done, changes no result.
6. *sampling*: a seed fixes the samples, and one symbol to choose from makes them greedy.
"""

from __future__ import annotations

import itertools
from typing import Callable, Sequence

import torch

from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import EOS, Batch, Seq
from transduce.search import Beam, Greedy, LengthPenalty, Sample, StepScorer, score

from .rows import in_double, row_of, with_targets
from .tolerances import tolerance

FIRST = 4
"""The first id that is a symbol of its own; those below are padding, begin, end and unknown."""


def check_search(
    make_model: Callable[[int], Model], *, batch: Batch | None = None, num_symbols: int = 7, longest: int = 4
) -> None:
    """Check the laws above on ``make_model(num_symbols)``, in float64 and evaluation mode.

    ``make_model`` builds a model whose source and target have ``num_symbols`` ids, the four special ones
    included. ``batch``: rows to decode (by default five sources of different lengths; a language model
    needs one with targets, which only tell the number of rows). Exhaustive enumeration covers (num_symbols
    - 4)^longest sequences, so keep both small. Raises AssertionError that names the first broken law.
    """
    assert num_symbols > FIRST, f"check_search needs more than {FIRST} symbols, got {num_symbols}"
    model = make_model(num_symbols).double().eval()
    batch = in_double(batch) if batch is not None else _sources(num_symbols)
    _beam_of_one(model, batch)
    _batch(model, batch)
    _full_beam(model, batch, num_symbols, longest)
    _scores(model, batch)
    _early_stop(model, batch)
    _sampling(model, batch)


def _sources(num_symbols: int) -> Batch:
    ids = itertools.cycle(range(FIRST, num_symbols))
    return Batch(Seq.from_lists([[next(ids) for _ in range(n)] for n in (4, 2, 1, 5, 3)]), None)


def _fail(law: str, got: object, want: object) -> AssertionError:
    return AssertionError(f'law "{law}": found {got}, expected {want}')


def _alike(law: str, got: Sequence[Sequence[Hypothesis]], want: Sequence[Sequence[Hypothesis]]) -> None:
    """The same symbols, endings and, within the tolerance, scores."""
    allowed = tolerance("search", torch.float64)
    for ours, theirs in zip(got, want, strict=True):
        plain = [(h.ids, h.finished) for h in ours], [(h.ids, h.finished) for h in theirs]
        if plain[0] != plain[1]:
            raise _fail(law, *plain)
        for h, other in zip(ours, theirs):
            if abs(h.score - other.score) > allowed * max(1.0, abs(other.score)):
                raise _fail(law, h, other)


def _beam_of_one(model: Model, batch: Batch) -> None:
    _alike("beam of one", Beam(1, max_length=9)(model, batch), Greedy(9)(model, batch))


def _full_beam(model: Model, batch: Batch, num_symbols: int, longest: int) -> None:
    """Compared by score, since equal scores may come in any order."""
    law, allowed = "full beam", tolerance("search", torch.float64)
    symbols = range(FIRST, num_symbols)
    every = [ids for n in range(longest) for ids in itertools.product(symbols, repeat=n)]
    width = 2 * len(symbols) ** longest
    for length in (LengthPenalty(0.0), LengthPenalty(1.0), LengthPenalty(0.6, reward=0.3)):
        found = Beam(width, num_best=len(every), max_length=longest, length=length)(model, batch)
        for i, row in enumerate(found):
            totals = score(model, with_targets(row_of(batch, i), [[*ids, EOS] for ids in every]))
            want = {ids: float(length(total, len(ids) + 1)) for ids, total in zip(every, totals)}
            ended = [h for h in row if h.finished]
            possible = {ids: s for ids, s in want.items() if s > float("-inf")}
            if {h.ids for h in ended} != possible.keys() or len(ended) != len(possible):
                raise _fail(law, f"{len(ended)} hypotheses", f"{len(possible)} sequences")
            for h, best in zip(ended, sorted(possible.values(), reverse=True)):
                scale = allowed * max(1.0, abs(best))
                if abs(h.score - best) > scale or abs(h.score - want[h.ids]) > scale:
                    raise _fail(law, h, (best, want[h.ids]))


def _batch(model: Model, batch: Batch) -> None:
    searches = (
        Greedy(9),
        Beam(4, num_best=3, max_length=9, length=LengthPenalty(1.0)),
        Sample(num_samples=3, max_length=9, seed=5),
        Sample(0.7, top_k=3, top_p=0.9, max_length=9, seed=6),
    )
    for search in searches:
        alone = [search(model, row_of(batch, i))[0] for i in range(batch.size)]
        _alike("batch", search(model, batch), alone)


def _scores(model: Model, batch: Batch) -> None:
    law, allowed = "scores", tolerance("search", torch.float64)
    for search in (Greedy(9), Beam(5, num_best=5, max_length=9), Sample(num_samples=4, max_length=9)):
        for i, row in enumerate(search(model, batch)):
            ended = [h.score for h in row if h.finished]
            if sorted(ended, reverse=True) != ended:
                raise _fail(law, ended, "the best first")
            if isinstance(search, Beam) and len({(h.ids, h.finished) for h in row}) != len(row):
                raise _fail(law, [h.ids for h in row], "different hypotheses")
            for h in (h for h in row if h.finished):
                own = float(score(model, with_targets(row_of(batch, i), [[*h.ids, EOS]])))
                if abs(h.parts["model"] - own) > allowed * max(1.0, abs(own)):
                    raise _fail(law, h, own)


class _Indifferent(StepScorer):
    """Adds nothing, but does not promise it, so that a beam cannot stop early."""

    name, never_positive = "indifferent", False


def _early_stop(model: Model, batch: Batch) -> None:
    for length in (LengthPenalty(0.0), LengthPenalty(1.0), LengthPenalty(0.6, reward=0.2)):
        early = Beam(3, num_best=2, max_length=12, length=length)
        late = Beam(3, num_best=2, max_length=12, length=length, scorers=[_Indifferent()])
        _alike("early stop", early(model, batch), late(model, batch))


def _sampling(model: Model, batch: Batch) -> None:
    law = "sampling"
    draw = lambda seed: Sample(num_samples=2, max_length=9, seed=seed)(model, batch)
    _alike(law, draw(3), draw(3))
    _alike(law, Sample(top_k=1, max_length=9)(model, batch), Greedy(9)(model, batch))
