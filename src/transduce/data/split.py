"""Splits that depend on the source alone, so that no source stands in two parts."""

from __future__ import annotations

import hashlib
from typing import Callable, Iterable, Sequence

from .batching import Example


def bucket(source: str) -> int:
    """SHA-1 of the UTF-8 text as an integer, modulo 100."""
    return int(hashlib.sha1(source.encode("utf-8")).hexdigest(), 16) % 100


def part_of(source: str) -> str:
    """ "test" for buckets 0 to 9, "valid" for 10 and 11, "train" for the rest."""
    number = bucket(source)
    return "test" if number < 10 else "valid" if number < 12 else "train"


def split(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Examples by part, keyed by their source (texts: by the text itself).

    A set so small that a part would stay empty gives it the sources with the lowest hashes instead.
    """
    parts: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for example in examples:
        parts[part_of(_key(example))].append(example)
    for name in ("valid", "test"):
        keys = {_key(e) for e in parts["train"]}
        if not parts[name] and len(keys) > 1:
            first = min(keys, key=lambda k: hashlib.sha1(k.encode("utf-8")).digest())
            parts[name] = [e for e in parts["train"] if _key(e) == first]
            parts["train"] = [e for e in parts["train"] if _key(e) != first]
    return parts


def _key(example: Example) -> str:
    return example.target if example.source is None else example.source


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


def merged(examples: Iterable[Example]) -> list[Example]:
    """Rows of one source become one example with several references."""
    by_source: dict[str, list[str]] = {}
    for example in examples:
        by_source.setdefault(example.source, []).append(example.target)
    return [Example(s, targets[0], tuple(dict.fromkeys(targets))) for s, targets in by_source.items()]
