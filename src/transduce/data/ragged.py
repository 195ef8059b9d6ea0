"""Rows of ids of different length in one flat array of the narrowest integer that holds them."""

from __future__ import annotations

from array import array
from typing import Iterable, Iterator, Sequence

import numpy as np
import torch

from transduce.core.seq import PAD, Seq


class Ragged(Sequence):
    """A sequence of rows, each a list of ids; batches are cut out of it without a Python loop over rows.

    ``flat`` holds all ids one behind the other, ``starts`` and ``lengths`` say where each row lies. A letter
    of an alphabet costs one byte here, a word of a vocabulary of up to 65,536 two.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self.flat, self.starts, self.lengths = flat, starts, lengths

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], size: int | None = None) -> Ragged:
        """The rows, read once. ``size``: every id is below it (unknown: four bytes an id)."""
        kind = "i" if size is None else "B" if size <= 1 << 8 else "H" if size <= 1 << 16 else "i"
        flat, ends = array(kind), array("q", [0])
        for row in rows:
            flat.extend(row)
            ends.append(len(flat))
        edges = np.frombuffer(ends, dtype=np.int64)
        return cls(np.frombuffer(flat, dtype=np.dtype(kind)), edges[:-1], np.diff(edges))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start = self.starts[at]
        return self.flat[start : start + self.lengths[at]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
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
        data = torch.from_numpy(np.where(valid, self.flat[at], PAD).astype(np.int64))
        return Seq(data, None if valid.all() else torch.from_numpy(valid))

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
