"""Rows of different length in one flat array: ids in the narrowest integer that holds them, or vectors."""

from __future__ import annotations

from array import array
from itertools import chain, islice
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
import torch

from transduce.core.seq import PAD, Seq


class Ragged(Sequence):
    """A sequence of rows, each a list of ids or of vectors of one width; batches are cut out of it without a
    Python loop over rows.

    ``flat`` holds all steps one behind the other, ``starts`` and ``lengths`` say where each row lies. A letter
    of an alphabet costs one byte here, a word of a vocabulary of up to 65,536 two, a vector four a number.
    Padding is id 0, or a vector of zeros.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self.flat, self.starts, self.lengths = flat, starts, lengths

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]], size: int | None = None) -> Ragged:
        """The rows, read once. ``size``: every id is below it (unknown: four bytes an id)."""
        rows = iter(rows)
        first = list(islice(rows, 1))
        width = len(first[0][0]) if first and len(first[0]) and isinstance(first[0][0], Sequence) else None
        kind = (
            "f" if width else "i" if size is None else "B" if size <= 256 else "H" if size <= 65536 else "i"
        )
        flat, ends = array(kind), array("q", [0])
        for row in chain(first, rows):
            flat.extend(chain.from_iterable(row) if width else row)
            ends.append(len(flat) // (width or 1))
        edges = np.frombuffer(ends, dtype=np.int64)
        steps = np.frombuffer(flat, dtype=np.dtype(kind)) if len(flat) else np.zeros(0, dtype=np.dtype(kind))
        return cls(steps.reshape(-1, width) if width else steps, edges[:-1], np.diff(edges))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start = self.starts[at]
        return self.flat[start : start + self.lengths[at]].tolist()

    def __iter__(self) -> Iterator[list[Any]]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        same_kind = isinstance(other, (Ragged, list, tuple))
        return (
            len(self) == len(other) and all(a == list(b) for a, b in zip(self, other)) if same_kind else False
        )

    def select(self, rows: Sequence[int]) -> Ragged:
        """These rows, in this order; the ids themselves are shared."""
        at = np.asarray(rows, dtype=np.int64)
        return Ragged(self.flat, self.starts[at], self.lengths[at])

    def take(self, rows: np.ndarray) -> Seq:
        """Rows padded on the right to the longest of them."""
        lengths = self.lengths[rows]
        steps = np.arange(int(lengths.max()))
        valid = steps < lengths[:, None]
        at = np.where(valid, self.starts[rows][:, None] + steps, 0)
        taken = self.flat[at]
        taken = taken.astype(np.int64) if taken.dtype.kind != "f" else taken
        taken[~valid] = PAD
        return Seq(torch.from_numpy(taken), None if valid.all() else torch.from_numpy(valid))

    def joined(self, rows: np.ndarray, firsts: np.ndarray) -> tuple[Seq, torch.Tensor]:
        """Several rows one behind the other: line i holds ``rows[firsts[i]:firsts[i + 1]]``.

        Returns the lines, padded on the right, and (B,U) True where a row begins.
        """
        lengths = self.lengths[rows]
        before = np.cumsum(lengths) - lengths  # symbols ahead of each row, all lines in one
        line = np.searchsorted(firsts, np.arange(len(rows)), side="right") - 1
        column = before - before[firsts][line]
        width = int((column + lengths).max())
        begins = line * width + column
        within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        target = np.repeat(begins, lengths) + within
        data = np.full(len(firsts) * width, PAD, dtype=np.int64)
        data[target] = self.flat[np.repeat(self.starts[rows], lengths) + within]
        valid, resets = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
        valid[target], resets[begins] = True, True
        shape = (len(firsts), width)
        mask = None if valid.all() else torch.from_numpy(valid.reshape(shape))
        return Seq(torch.from_numpy(data.reshape(shape)), mask), torch.from_numpy(resets.reshape(shape))
