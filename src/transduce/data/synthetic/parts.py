"""Generated corpora that other rules than a function of one word make: two sources in one, long readings."""

from __future__ import annotations

import random
from typing import Callable

from transduce.core.errors import DataError

from ..batching import Corpus, Example
from ..fields import SEPARATOR
from ..split import part_of

LETTERS = "abcdefghijkl"


def interleave(*, train: int = 20000, held_out: int = 1000, seed: int = 0, length: int = 6) -> Corpus:
    """``"abcdef" SEPARATOR "ghijkl"`` -> both words interleaved, ``length`` letters each.

    The place of the second word's first letter in the alphabet, modulo 3, is the rule: the first word begins,
    the second word begins, or the first word comes whole before the second. Neither word alone says what
    comes out.
    """

    def draw(rng: random.Random) -> tuple[str, str]:
        a, b = ("".join(rng.choices(LETTERS, k=length)) for _ in range(2))
        return a + SEPARATOR + b, interleaved(a, b)

    return draw_corpus("synthetic-interleave", draw, train, held_out, seed)


def interleaved(a: str, b: str) -> str:
    """What the rule of :func:`interleave` makes of two words of one length."""
    rule = LETTERS.index(b[0]) % 3
    if rule == 2:
        return a + b
    first, second = (a, b) if rule == 0 else (b, a)
    return "".join(x + y for x, y in zip(first, second))


def readings(
    *, train: int = 20000, held_out: int = 1000, seed: int = 0, length: int = 24, repetitions: int = 3
) -> Corpus:
    """A word of ``length`` letters -> its letters in a fixed permuted order, ``repetitions`` times over.

    The target is several times as long as the source, so a model that spreads one unit of attention over
    source and target has ever less of it left for the source.
    """
    order = reading_order(length)

    def draw(rng: random.Random) -> tuple[str, str]:
        word = "".join(rng.choices(LETTERS, k=length))
        return word, "".join(word[i] for i in order) * repetitions

    return draw_corpus("synthetic-readings", draw, train, held_out, seed)


def reading_order(length: int) -> list[int]:
    """The permutation of :func:`readings`, the same in every corpus."""
    order = list(range(length))
    random.Random(7).shuffle(order)
    return order


def draw_corpus(
    name: str, draw: Callable[[random.Random], tuple[str, str]], train: int, held_out: int, seed: int
) -> Corpus:
    """Different sources with their targets from ``draw``, each in the part that its hash says; characters."""
    if train < 1 or held_out < 1:
        raise DataError("A generated corpus needs at least one row a part.")
    rng = random.Random(f"{name}/{seed}")
    wanted = {"train": train, "valid": held_out, "test": held_out}
    parts: dict[str, dict[str, Example]] = {part: {} for part in wanted}
    for _ in range(200 * sum(wanted.values())):
        source, target = draw(rng)
        rows = parts[part_of(source)]
        if len(rows) < wanted[part_of(source)]:
            rows[source] = Example(source, target, (target,))
        elif all(len(parts[p]) == wanted[p] for p in wanted):
            break
    if any(len(parts[p]) < wanted[p] for p in wanted):
        raise DataError(
            f"There are too few different sources for {train} rows to train on and {held_out} for either held-out "
            "part; ask for fewer rows or longer words."
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
