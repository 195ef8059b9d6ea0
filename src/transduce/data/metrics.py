"""Error rates with several references and their uncertainty; BLEU, chrF and ROUGE."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Callable, Hashable, Mapping, Sequence

import numpy as np

from transduce.core.errors import DataError


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


Score = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), with sacrebleu's tokens 13a and exponential smoothing.

    Needs the extra ``metrics`` (:class:`DataError` names it)."""
    return float(_sacrebleu().BLEU().corpus_score(*_streams(predictions, references)).score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus chrF2, 0 to 100: F-score of character n-grams up to 6 (Popović 2015). Needs the extra ``metrics``."""
    return float(_sacrebleu().CHRF().corpus_score(*_streams(predictions, references)).score)


def bleu_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """``{"bleu": ..., "chrf": ...}`` of whole texts against one or several references each."""
    return measures(TRANSLATION, predictions, references)


def rouge(order: int, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean F1 of n-grams shared with the closest reference, 0 to 100 (Lin 2004, ROUGE-N without stemming).

    Words are runs of letters and digits, lower case. ``order`` 0: ROUGE-L, the longest common subsequence of
    words."""
    _same_length(predictions, references)
    scores = [
        max(_shared(order, _words(guess), _words(answer)) for answer in answers)
        for guess, answers in zip(predictions, references)
    ]
    return 100 * sum(scores) / len(scores)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _shared(order: int, guess: list[str], answer: list[str]) -> float:
    if order == 0:
        common, size = _common_subsequence(guess, answer), len(guess) + len(answer)
    else:
        a, b = (Counter(zip(*(words[i:] for i in range(order)))) for words in (guess, answer))
        common, size = (a & b).total(), a.total() + b.total()
    return 2 * common / size if size else 0.0


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence: with insertions and deletions alone, a bit a cell (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        same = row & places.get(word, 0)
        row = ((row + same) | (row - same)) & every
    return len(a) - row.bit_count()


METRICS: dict[str, tuple[str, Score]] = {
    "bleu": ("BLEU", bleu),
    "chrf": ("chrF", chrf),
    "rouge1": ("ROUGE-1", partial(rouge, 1)),
    "rouge2": ("ROUGE-2", partial(rouge, 2)),
    "rougeL": ("ROUGE-L", partial(rouge, 0)),
}
"""By name: how it is written, and the function of whole texts. All are from 0 to 100, more is better."""

TRANSLATION = ("bleu", "chrf")
SUMMARY = ("rouge1", "rouge2", "rougeL")


def measures(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The named :data:`METRICS` of whole texts."""
    return {name: METRICS[name][1](predictions, references) for name in names}


def _same_length(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references) or not predictions or not all(references):
        raise ValueError(
            f"a metric needs a reference or more for each prediction, got {len(predictions)} and {len(references)}"
        )


def _streams(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str | None]]]:
    """sacrebleu's layout: the n-th references of all rows lie together, None where a row has fewer."""
    _same_length(predictions, references)
    most = max(len(answers) for answers in references)
    return list(predictions), [
        [answers[n] if n < len(answers) else None for answers in references] for n in range(most)
    ]


def _sacrebleu():
    try:
        from sacrebleu import metrics
    except ImportError:
        raise DataError(
            'BLEU and chrF need the package sacrebleu: pip install "transduce[metrics]".'
        ) from None
    return metrics


def described(scores: Mapping[str, float]) -> str:
    """ "BLEU 27.31, chrF 51.02" of scores by name."""
    return ", ".join(f"{METRICS[name][0]} {value:.2f}" for name, value in scores.items())
