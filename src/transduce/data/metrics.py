"""Error rates with several references, and their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Hashable, Sequence

import numpy as np


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Least number of insertions, deletions and substitutions that turn ``a`` into ``b`` (Levenshtein
    1966).

    One row of the table is two integers that hold a bit for each cell: where the distance rises by one
    towards the next cell and where it falls; a step costs a dozen integer operations at any length (Myers
    1999, section 3; Hyyrö 2003).
    """
    if not a or not b:
        return len(a) + len(b)
    places: dict[Hashable, int] = {}
    for i, x in enumerate(a):
        places[x] = places.get(x, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)
    for y in b:
        same = places.get(y, 0)
        diagonal = (((same & rises) + rises) ^ rises) | same | falls
        up = falls | ~(diagonal | rises) & every
        down = rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1  # the first row of the table rises by one a step
        rises = (down << 1 | ~(diagonal | up)) & every
        falls = up & diagonal & every
    return distance


@dataclass(frozen=True)
class ErrorRates:
    """``sequence``: share of rows that equal none of their references. ``symbol``: edits over reference
    length.

    Per row: ``wrong`` (0 or 1), ``edits`` to the reference with the fewest edits per symbol, and its
    ``length``.
    """

    sequence: float
    symbol: float
    wrong: np.ndarray
    edits: np.ndarray
    lengths: np.ndarray


def error_rates(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> ErrorRates:
    """Score each prediction against all of its references and keep the closest one."""
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"error rates need as many predictions as references, got {len(predictions)} and {len(references)}"
        )
    edits = np.zeros(len(predictions), dtype=np.int64)
    lengths = np.zeros(len(predictions), dtype=np.int64)
    for i, (guess, answers) in enumerate(zip(predictions, references)):
        guess = list(guess)
        best = min(
            ((edit_distance(guess, list(answer)), len(answer)) for answer in answers),
            key=lambda found: (found[0] / max(1, found[1]), found[0]),
        )
        edits[i], lengths[i] = best
    wrong = (edits > 0).astype(np.int64)
    return ErrorRates(float(wrong.mean()), float(edits.sum() / max(1, lengths.sum())), wrong, edits, lengths)


def bootstrap(
    numerators: np.ndarray,
    denominators: np.ndarray | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of sum(numerators) / sum(denominators) over rows drawn with replacement (Efron
    1979)."""
    rows = len(numerators)
    below = np.ones(rows) if denominators is None else np.asarray(denominators, dtype=float)
    above = np.asarray(numerators, dtype=float)
    rng = np.random.default_rng(seed)
    ratios = np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(0, rows, rows)
        ratios[i] = above[drawn].sum() / max(1e-12, below[drawn].sum())
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bits_per_character(nats: float, characters: int) -> float:
    """Total negative log-likelihood in nats over a number of characters."""
    return nats / math.log(2.0) / characters
