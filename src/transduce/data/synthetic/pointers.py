"""Pointer chasing: a permutation is written out, and a question asks where k hops through it lead."""

from __future__ import annotations

import random
from dataclasses import replace

from ..batching import Corpus
from .parts import draw_corpus

ITEMS, HOPS = 8, 4


def pointers(
    *, train: int = 20000, held_out: int = 1000, seed: int = 0, items: int = ITEMS, hops: int = HOPS
) -> Corpus:
    """``"0>3 1>0 2>2 3>1 0*2"`` -> ``"1"``: from 0, two hops. Words; ``items`` pointers, 1 to ``hops`` hops.

    The pointers form a random permutation and stand in the order of their items. Each hop needs the one
    before, so a single layer of attention cannot follow two. Short cycles make the start itself the answer
    more often than chance: with 8 items in 12.5, 25, 25, 37.5 % of the questions with 1, 2, 3, 4 hops.
    """

    def draw(rng: random.Random) -> tuple[str, str]:
        target = rng.sample(range(items), items)
        start, count = rng.randrange(items), rng.randint(1, hops)
        source = " ".join(f"{i}>{j}" for i, j in enumerate(target)) + f" {start}*{count}"
        return source, str(follow(target, start, count))

    made = draw_corpus("synthetic-pointers", draw, train, held_out, seed)
    return replace(
        made,
        source_units="words",
        target_units="words",
        sequence_name="wrong answers",
        symbol_name="wrong answers",
    )


def follow(target: list[int], start: int, hops: int) -> int:
    """Where ``hops`` hops along ``target`` lead from ``start``."""
    for _ in range(hops):
        start = target[start]
    return start
