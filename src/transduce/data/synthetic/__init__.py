"""Generated corpora whose best possible error is known: 0, since each target is a function of its source.

``synthetic-reverse``, ``synthetic-copy``, ``synthetic-sort`` and ``synthetic-cipher`` are built-in names;
:func:`make` takes other sizes.
"""

from __future__ import annotations

import random
from typing import Callable

from transduce.core.errors import DataError, nearest

from ..batching import Corpus, Example

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


def names() -> list[str]:
    return [f"synthetic-{rule}" for rule in _RULES]


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
    backwards (the toy translation of system ``grconv``). No source stands in two parts.
    """
    rule = _RULES.get(name.removeprefix("synthetic-"))
    if rule is None:
        raise DataError(f'There is no generated corpus "{name}".{nearest(name, names())}')
    if not 1 <= shortest <= longest or train < 1 or held_out < 1:
        raise DataError("A generated corpus needs at least one row a part and 1 <= shortest <= longest.")
    rng = random.Random(f"{name}/{seed}")
    wanted, seen = train + 2 * held_out, {}
    for _ in range(50 * wanted):
        seen["".join(rng.choices(LETTERS, k=rng.randint(shortest, longest)))] = None
        if len(seen) == wanted:
            break
    if len(seen) < wanted:
        raise DataError(
            f"There are fewer than {wanted} different strings of {shortest} to {longest} letters."
        )
    examples = [Example(word, rule(word), (rule(word),)) for word in seen]
    return Corpus(
        name,
        "pairs",
        examples[2 * held_out :],
        examples[:held_out],
        examples[held_out : 2 * held_out],
        "chars",
        "chars",
        "sequence error",
        "letter error",
        licence="generated",
        origin="transduce.data.synthetic",
    )
