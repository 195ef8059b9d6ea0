"""Generated corpora whose best possible error is known: 0, since each target is a function of its source.

``synthetic-reverse``, ``synthetic-copy``, ``synthetic-sort`` and ``synthetic-cipher`` are letter strings,
``synthetic-hull``, ``synthetic-delaunay`` and ``synthetic-tour`` sets of points (:mod:`.geometry`), ``synthetic-where``
stories with a question (:mod:`.stories`); :func:`make` takes other sizes. ``synthetic-pointers`` asks questions about
a permutation, ``synthetic-interleave`` joins two sources, ``synthetic-readings`` has targets three times as long as
their sources.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, Callable

from transduce.core.errors import DataError, nearest

from ..batching import Corpus, Example
from ..split import bucket
from . import geometry, stories
from .parts import interleave, readings
from .pointers import pointers

LETTERS = "abcdefghijklmnopqrstuvwxy"  # 25 letters and four special ids: a vocabulary of 29


def _cipher(word: str) -> str:
    table = list(LETTERS)
    random.Random(7).shuffle(table)
    return word.translate(str.maketrans(LETTERS, "".join(table)))[::-1]


_RULES: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "copy": lambda word: word,
    "sort": lambda word: "".join(sorted(word)),
    "cipher": _cipher,
}


@dataclass(frozen=True)
class _Kind:
    """``draw(rng, size)`` makes a source and what its answer follows from; ``answers`` turns all of those of a part into
    targets. ``made_of``: what sources are called and what their size counts; ``sizes``: the least and the greatest."""

    draw: Callable[[random.Random, int], tuple[str, Any]]
    answers: Callable[[list[Any]], list[str]]
    sizes: tuple[int, int]
    made_of: tuple[str, str]
    units: tuple[str, str]
    errors: tuple[str, str]


def _draw_word(rng: random.Random, size: int) -> tuple[str, str]:
    word = "".join(rng.choices(LETTERS, k=size))
    return word, word


def _draw_points(rng: random.Random, size: int) -> tuple[str, geometry.Points]:
    points = geometry.random_points(rng, size)
    return geometry.write_points(points), points


def _draw_story(rng: random.Random, size: int) -> tuple[str, str]:
    found = stories.story(rng, max(2, size))
    return found.source, found.answer


def _words(rule: Callable[[str], str]) -> _Kind:
    errors = ("sequence error", "letter error")
    return _Kind(_draw_word, lambda words: [rule(w) for w in words], (1, 20), ("strings", "letters"), ("chars", "chars"), errors)


def _points(answer: geometry.Answer, sizes: tuple[int, int]) -> _Kind:
    written = lambda sets: [" ".join(map(str, positions)) for positions in answer(sets)]
    errors = ("sequence error", "position error")
    return _Kind(_draw_points, written, sizes, ("sets", "points"), ("points", "positions"), errors)


_ANSWERS = ("answer error", "word error")
_KINDS: dict[str, _Kind] = {
    **{name: _words(rule) for name, rule in _RULES.items()},
    **{name: _points(answer, sizes) for name, (answer, sizes) in geometry.TASKS.items()},
    "where": _Kind(_draw_story, list, (10, 10), ("stories", "sentences"), ("words", "words"), _ANSWERS),
}


_OTHERS: dict[str, Callable[[], Corpus]] = {
    "synthetic-interleave": interleave,
    "synthetic-pointers": pointers,
    "synthetic-readings": readings,
}
"""Corpora of another shape, each with sizes of its own."""


def names() -> list[str]:
    return [*(f"synthetic-{kind}" for kind in _KINDS), *_OTHERS]


def built_in(name: str) -> Corpus:
    """A generated corpus in its usual size."""
    return _OTHERS[name]() if name in _OTHERS else make(name)


def make(
    name: str,
    *,
    train: int = 20000,
    held_out: int = 1000,
    shortest: int | None = None,
    longest: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Random sources and what the rule makes of them.

    reverse: ``shortest`` to ``longest`` (1 to 20) letters backwards. copy: the same. sort: letters in order. cipher: a
    fixed letter substitution, backwards (the toy translation of system ``grconv``). hull, delaunay, tour: so many (5 to
    12, 5 to 8, 5 to 8) points and the positions of the convex hull's corners, of all triangles, of the shortest tour.
    where: a story of so many (10) sentences, the place where a thing is. A source's hash decides its part, so none
    stands in two, and the few strings of one or two letters are shared out like all others.
    """
    kind = _KINDS.get(name.removeprefix("synthetic-"))
    if kind is None:
        raise DataError(f'There is no generated corpus "{name}".{nearest(name, names())}')
    shortest = kind.sizes[0] if shortest is None else shortest
    longest = max(shortest, kind.sizes[1]) if longest is None else longest
    if not 1 <= shortest <= longest or train < 1 or held_out < 1:
        raise DataError("A generated corpus needs at least one row a part and 1 <= shortest <= longest.")
    rng = random.Random(f"{name}/{seed}")
    wanted = {"train": train, "valid": held_out, "test": held_out}
    # How many of the hundred hash values go to either held-out part.
    share = min(45, math.ceil(100 * held_out / (train + 2 * held_out)))
    parts: dict[str, dict[str, Any]] = {part: {} for part in wanted}
    for _ in range(50 * sum(wanted.values())):
        source, made = kind.draw(rng, rng.randint(shortest, longest))
        number = bucket(source)
        part = "test" if number < share else "valid" if number < 2 * share else "train"
        if len(parts[part]) < wanted[part]:
            parts[part][source] = made
        elif all(len(parts[p]) == wanted[p] for p in wanted):
            break
    if any(len(parts[p]) < wanted[p] for p in wanted):
        raise DataError(
            f"There are too few different {kind.made_of[0]} of {shortest} to {longest} {kind.made_of[1]} for {train} rows to train "
            f"on and {held_out} for either held-out part; ask for fewer rows or longer ones."
        )
    answers = {part: kind.answers(list(found.values())) for part, found in parts.items()}
    return Corpus(
        name,
        "pairs",
        *([Example(s, a, (a,)) for s, a in zip(parts[p], answers[p])] for p in ("train", "valid", "test")),
        *kind.units,
        *kind.errors,
        licence="generated",
        origin="transduce.data.synthetic",
    )
