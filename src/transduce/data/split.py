"""Splits that depend on the source alone, so that no source stands in two parts."""

from __future__ import annotations

import hashlib
from typing import Iterable

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
