"""Splits that depend on the source alone, so that no source stands in two parts."""

from __future__ import annotations

from typing import Callable, Iterable, Sequence

import numpy as np

from .examples import Example, merged
from .identity import fingerprint


def bucket(source: str) -> int:
    """SHA-1 of the UTF-8 source as an integer, modulo 100."""
    return fingerprint(source)[1]


def part_of(source: str) -> str:
    """ "test" for buckets 0 to 9, "valid" for 10 and 11, "train" for the rest."""
    number = bucket(source)
    return "test" if number < 10 else "valid" if number < 12 else "train"


def fingerprints(examples: Iterable[Example]) -> tuple[np.ndarray, np.ndarray]:
    """:func:`fingerprint` of every example's source (texts: of the text itself): (N,) uint64 and (N,) uint8."""
    known = getattr(examples, "fingerprints", None)
    if known is not None:
        return known
    found = [fingerprint(e.target if e.source is None else e.source) for e in examples]
    return np.array([k for k, _ in found], dtype=np.uint64), np.array([b for _, b in found], dtype=np.uint8)


def pick(examples: Sequence[Example], where: np.ndarray) -> Sequence[Example]:
    """The examples at which the (N,) bool ``where`` is True, in their order."""
    rows = np.flatnonzero(where)
    select = getattr(examples, "select", None)
    return select(rows) if select is not None else [examples[i] for i in rows]


def split(examples: Sequence[Example]) -> dict[str, Sequence[Example]]:
    """Examples by part, keyed by their source (texts: by the text itself).

    A set so small that a part would stay empty gives it the source with the lowest hash instead.
    """
    examples = examples if isinstance(examples, Sequence) else list(examples)
    keys, buckets = fingerprints(examples)
    part = np.where(buckets < 10, 2, np.where(buckets < 12, 1, 0))
    for number in (1, 2):
        training = keys[part == 0]
        if not (part == number).any() and len(training) and (training != training[0]).any():
            part[(part == 0) & (keys == training.min())] = number
    return {name: pick(examples, part == number) for number, name in enumerate(("train", "valid", "test"))}


def carve(examples: Sequence[Example], name: str) -> tuple[Sequence[Example], Sequence[Example]]:
    """A training part without its sources of the part ``name``, and those: for data that bring no such part."""
    parts = split(examples)
    keys, _ = fingerprints(examples)
    taken = np.isin(keys, fingerprints(parts[name])[0])
    return pick(examples, ~taken), pick(examples, taken)


def overlap(held_out: Sequence[Example], train: Sequence[Example]) -> np.ndarray:
    """(N,) bool: which held-out examples have a source that stands in the training part."""
    return np.isin(fingerprints(held_out)[0], fingerprints(train)[0])


def split_grouped(
    rows: Iterable[tuple[str, Example]], pieces: Callable[[str], Sequence[str]] = lambda source: (source,)
) -> dict[str, list[Example]]:
    """Examples by part, where all rows of a group (a page, a package) go together: ``(group, example)``.

    A source that stands in groups of several parts goes into "train" with all of its rows, so that nothing held
    out was seen; so does one of which only a piece does. ``pieces``: what a source is made of, itself by
    default. Rows of one source become one example with several references.
    """
    rows = list(rows)
    placed = [part_of(group) for group, _ in rows]
    made_of = [tuple(pieces(example.source)) for _, example in rows]
    while True:
        parts: dict[str, set[str]] = {}
        for part, texts in zip(placed, made_of):
            for text in texts:
                parts.setdefault(text, set()).add(part)
        moved = [
            i
            for i, texts in enumerate(made_of)
            if placed[i] != "train" and any(len(parts[text]) > 1 for text in texts)
        ]
        if not moved:
            break
        for i in moved:
            placed[i] = "train"
    found: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for part, (_, example) in zip(placed, rows):
        found[part].append(example)
    return {part: merged(examples) for part, examples in found.items()}
