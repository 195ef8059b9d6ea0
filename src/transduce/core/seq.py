"""Batches of sequences. Batch is dimension 0, time is dimension 1, and a mask is True where a step is
valid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Sequence

import torch
from torch import Tensor

PAD, BOS, EOS, UNK = 0, 1, 2, 3
"""Ids that mean the same in every vocabulary: padding, begin, end, unknown symbol."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) bool, True for steps below the row's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (B,T,...) with invalid steps set to exactly zero, whatever they held (NaN included)."""
    if mask is None:
        return x
    return torch.where(
        mask.view(*mask.shape, *([1] * (x.dim() - 2))), x, torch.zeros((), dtype=x.dtype, device=x.device)
    )


@dataclass(frozen=True)
class Seq:
    """A padded batch: ``data`` (B,T,...) and ``mask`` (B,T) or None where every step is valid."""

    data: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.data.dim() < 2:
            raise ValueError(f"a Seq needs data of shape (batch, time, ...), got {tuple(self.data.shape)}")
        if self.mask is not None and (
            self.mask.shape != self.data.shape[:2] or self.mask.dtype != torch.bool
        ):
            raise ValueError(
                f"a Seq needs a bool mask of shape {tuple(self.data.shape[:2])}, "
                f"got {self.mask.dtype} {tuple(self.mask.shape)}"
            )

    @classmethod
    def from_lengths(cls, data: Tensor, lengths: Tensor) -> Seq:
        if bool((lengths == data.shape[1]).all()):
            return cls(data, None)
        return cls(data, length_mask(lengths, data.shape[1]))

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[Any]], pad: int = PAD) -> Seq:
        """Pad lists of ids on the right, or lists of vectors (tuples of numbers), with zeros. Every row needs at
        least one of them."""
        if not rows or any(len(r) == 0 for r in rows):
            raise ValueError("a Seq needs at least one row and no empty row")
        longest = max(map(len, rows))
        first, dtype = rows[0][0], torch.long
        if isinstance(first, (tuple, list)):
            pad, dtype = (0.0,) * len(first), torch.float32
        data = torch.tensor([list(r) + [pad] * (longest - len(r)) for r in rows], dtype=dtype)
        return cls.from_lengths(data, torch.tensor([len(r) for r in rows]))

    @property
    def batch(self) -> int:
        return self.data.shape[0]

    @property
    def steps(self) -> int:
        return self.data.shape[1]

    @property
    def lengths(self) -> Tensor:
        if self.mask is None:
            return torch.full((self.batch,), self.steps, dtype=torch.long, device=self.data.device)
        return self.mask.sum(1)

    def valid(self) -> Tensor:
        """The mask as a tensor, all True where there is none."""
        if self.mask is None:
            return torch.ones(self.data.shape[:2], dtype=torch.bool, device=self.data.device)
        return self.mask

    def with_data(self, data: Tensor) -> Seq:
        return replace(self, data=data)

    def select(self, rows: Tensor) -> Seq:
        return Seq(self.data[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str) -> Seq:
        return Seq(self.data.to(device), None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True)
class Batch:
    """What a training step or a search reads.

    ``target.data`` (B,U) ends each row with EOS; the decoder input is the same row shifted right behind BOS.
    A language model has no ``source``. ``rows`` are the positions of the examples in their data set.
    ``resets`` (B,U), of packed texts only: True at the first symbol of each of the texts that stand in a row
    one behind the other; the symbol before it is BOS and its history begins there. ``rows`` then names the
    texts in the order in which they stand, not one a row.
    """

    source: Seq | None
    target: Seq | None
    rows: tuple[int, ...] = ()
    resets: Tensor | None = None

    @property
    def size(self) -> int:
        some = self.source if self.source is not None else self.target
        if some is None:
            raise ValueError("an empty batch")
        return some.batch

    @property
    def previous(self) -> Tensor:
        """(B,U): BOS and the target without its last symbol, what a decoder reads under teacher forcing."""
        ids = self.target.data
        shifted = torch.cat((torch.full_like(ids[:, :1], BOS), ids[:, :-1]), 1)
        return shifted if self.resets is None else shifted.masked_fill(self.resets, BOS)

    @property
    def marks(self) -> dict[str, Tensor]:
        """What a model's ``forward`` is told beside ``mask``: the ``resets`` of packed texts, else nothing."""
        return {} if self.resets is None else {"resets": self.resets}

    def select(self, rows: Tensor) -> Batch:
        """The batch of some of its rows, padded as before."""
        pick = lambda s: None if s is None else s.select(rows)
        names: tuple[int, ...] = ()
        if self.rows and self.resets is None:
            names = tuple(self.rows[i] for i in rows.tolist())
        elif self.rows:
            ends = [0, *self.resets.sum(1).cumsum(0).tolist()]
            names = tuple(name for i in rows.tolist() for name in self.rows[ends[i] : ends[i + 1]])
        resets = None if self.resets is None else self.resets[rows]
        return replace(self, source=pick(self.source), target=pick(self.target), rows=names, resets=resets)

    def to(self, device: torch.device | str) -> Batch:
        move = lambda s: None if s is None else s.to(device)
        resets = None if self.resets is None else self.resets.to(device)
        return Batch(move(self.source), move(self.target), self.rows, resets)
