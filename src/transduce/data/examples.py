"""Rows of data, and how very many of them are kept: as bytes and offsets, not as Python objects."""

from __future__ import annotations

from array import array
from typing import Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from .identity import fingerprint


class Example(NamedTuple):
    """One row of data. ``references``: every right answer, ``target`` among them. A text has no
    ``source``."""

    source: str | None
    target: str
    references: tuple[str, ...]


def merged(examples: Iterable[Example]) -> list[Example]:
    """Rows of one source become one example with several references."""
    by_source: dict[str | None, list[str]] = {}
    for example in examples:
        by_source.setdefault(example.source, []).append(example.target)
    return [Example(s, targets[0], tuple(dict.fromkeys(targets))) for s, targets in by_source.items()]


class Examples(Sequence[Example]):
    """Examples read from files: their texts in one block of bytes, made into strings when one is asked for.

    Rows of one source are one example with several references, in the order of the file. A row costs its
    text in UTF-8 and about 35 bytes.
    """

    def __init__(self, rows: Rows, order: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
        self._rows, self._order, self._starts, self._counts = rows, order, starts, counts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start = self._starts[at]
        rows = self._order[start : start + self._counts[at]].tolist()
        source, target = self._rows.texts(rows[0])
        if len(rows) == 1:
            return Example(source, target, (target,))
        return Example(source, target, tuple(dict.fromkeys(self._rows.texts(row)[1] for row in rows)))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Examples, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    def __repr__(self) -> str:
        return f"<{len(self):,} examples>"

    @property
    def fingerprints(self) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`transduce.data.split.fingerprints`."""
        rows = self._order[self._starts]
        return self._rows.keys[rows], self._rows.buckets[rows]

    @property
    def rows(self) -> int:
        """Rows of the files behind these examples."""
        return int(self._counts.sum())

    def repeated(self) -> int:
        """Rows that say again what an earlier one says."""
        several = np.flatnonzero(self._counts > 1)
        return sum(int(self._counts[i]) - len(self[int(i)].references) for i in several)

    def select(self, at: np.ndarray) -> Examples:
        """These examples, in this order; the texts themselves are shared."""
        return Examples(self._rows, self._order, self._starts[at], self._counts[at])


class Rows:
    """Rows as they come out of a file, appended one by one."""

    def __init__(self) -> None:
        self.paired: bool | None = None
        self._text = bytearray()
        self._ends = array("q", [0])
        self._keys, self._buckets = array("Q"), array("B")

    def add(self, source: str | None, target: str) -> None:
        """Append a pair, or a text where ``source`` is None; all rows must be of one kind."""
        if self.paired is None:
            self.paired = source is not None
        if source is not None:
            self._text += source.encode("utf-8")
            self._ends.append(len(self._text))
        self._text += target.encode("utf-8")
        self._ends.append(len(self._text))
        key, bucket = fingerprint(target if source is None else source)
        self._keys.append(key)
        self._buckets.append(bucket)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """What the rows occupy, the order of :meth:`examples` included."""
        return len(self._text) + 8 * len(self._ends) + 21 * len(self._keys)

    @property
    def text_bytes(self) -> int:
        return len(self._text)

    @property
    def keys(self) -> np.ndarray:
        return np.frombuffer(self._keys, dtype=np.uint64) if self._keys else np.zeros(0, np.uint64)

    @property
    def buckets(self) -> np.ndarray:
        return np.frombuffer(self._buckets, dtype=np.uint8) if self._buckets else np.zeros(0, np.uint8)

    def texts(self, row: int) -> tuple[str | None, str]:
        """Source and target of a row."""
        if not self.paired:
            return None, self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8")
        start, middle, end = self._ends[2 * row : 2 * row + 3]
        return self._text[start:middle].decode("utf-8"), self._text[middle:end].decode("utf-8")

    def examples(self) -> Examples:
        """All rows; those of one source together, where there are sources."""
        count = len(self)
        kind = np.int32 if count < 1 << 31 else np.int64
        each = np.arange(count, dtype=kind)
        leader = self._leaders() if self.paired else each
        if (leader == each).all():
            return Examples(self, each, each, np.ones(count, dtype=kind))
        order = np.argsort(leader, kind="stable").astype(kind)
        starts = np.flatnonzero(np.diff(leader[order], prepend=-1)).astype(kind)
        return Examples(self, order, starts, np.diff(starts, append=count).astype(kind))

    def _leaders(self) -> np.ndarray:
        """(N,) the first row with the same source as each row, to the letter."""
        keys = self.keys
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + 1))
        sizes = np.diff(begins, append=len(keys))
        leader = np.empty(len(keys), dtype=np.int64)
        leader[order] = np.repeat(order[begins], sizes)
        # Sources of one fingerprint are nearly the same; which ones are the same to the letter is looked up.
        for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist()):
            first: dict[str | None, int] = {}
            for row in order[begin : begin + size].tolist():
                leader[row] = first.setdefault(self.texts(row)[0], row)
        return leader
