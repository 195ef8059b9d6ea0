"""Generated corpora whose best possible error is known: 0, since each target is a function of its source.

``synthetic-reverse``, ``synthetic-copy``, ``synthetic-sort`` and ``synthetic-cipher`` are built-in names;
:func:`make` takes other sizes. ``synthetic-pointers`` asks questions about a permutation,
``synthetic-interleave`` joins two sources, ``synthetic-readings`` has targets three times as long as their
sources.
"""

from __future__ import annotations

import math
import random
from typing import Callable

from transduce.core.errors import DataError, nearest

from ..batching import Corpus, Example
from ..split import bucket
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


_OTHERS: dict[str, Callable[[], Corpus]] = {
    "synthetic-interleave": interleave,
    "synthetic-pointers": pointers,
    "synthetic-readings": readings,
}
"""Corpora of another shape, each with sizes of its own."""


def names() -> list[str]:
    return [*(f"synthetic-{rule}" for rule in _RULES), *_OTHERS]


def built_in(name: str) -> Corpus:
    """A generated corpus in its usual size."""
    return _OTHERS[name]() if name in _OTHERS else make(name)


def make(
    name: str,
    *,
    train: int = 20000,
    held_out: int = 1000,
    shortest: int = 1,
    longest: int = 20,
    seed: int = 0,
) -> Corpus:
    """Random letter strings of ``shortest`` to ``longest`` letters and what the rule makes of them.

    reverse: backwards. copy: the same. sort: letters in order. cipher: a fixed letter substitution,
    backwards (the toy translation of system ``grconv``). A source's hash decides its part, so none stands
    in two, and the few strings of one or two letters are shared out like all others.
    """
    rule = _RULES.get(name.removeprefix("synthetic-"))
    if rule is None:
        raise DataError(f'There is no generated corpus "{name}".{nearest(name, names())}')
    if not 1 <= shortest <= longest or train < 1 or held_out < 1:
        raise DataError("A generated corpus needs at least one row a part and 1 <= shortest <= longest.")
    rng = random.Random(f"{name}/{seed}")
    wanted = {"train": train, "valid": held_out, "test": held_out}
    # How many of the hundred hash values go to either held-out part.
    share = min(45, math.ceil(100 * held_out / (train + 2 * held_out)))
    parts: dict[str, dict[str, Example]] = {part: {} for part in wanted}
    for _ in range(50 * sum(wanted.values())):
        word = "".join(rng.choices(LETTERS, k=rng.randint(shortest, longest)))
        number = bucket(word)
        part = "test" if number < share else "valid" if number < 2 * share else "train"
        if len(parts[part]) < wanted[part]:
            parts[part][word] = Example(word, rule(word), (rule(word),))
        elif all(len(parts[p]) == wanted[p] for p in wanted):
            break
    if any(len(parts[p]) < wanted[p] for p in wanted):
        raise DataError(
            f"There are too few different strings of {shortest} to {longest} letters for {train} rows to train "
            f"on and {held_out} for either held-out part; ask for fewer rows or longer strings."
        )
    return Corpus(
        name,
        "pairs",
        *(list(parts[p].values()) for p in ("train", "valid", "test")),
        "chars",
        "chars",
        "sequence error",
        "letter error",
        licence="generated",
        origin="transduce.data.synthetic",
    )
