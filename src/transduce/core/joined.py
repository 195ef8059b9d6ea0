"""Several sequences of one row in one: what travels where a single :class:`Seq` is expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import Tensor

from .seq import Seq


@dataclass(frozen=True)
class Joined(Seq):
    """Sequences laid end to end in time; ``sizes`` are the steps of each, padding included. ``places`` (B,T):
    where each step stood in the row that the parts were cut from, -1 for padding; None where that is not known.

    A reader that knows nothing of it sees one long sequence with padding inside; :attr:`parts` are the single
    ones. A row may lack a part: then all steps of it are masked.
    """

    sizes: tuple[int, ...] = ()
    places: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.sizes) != self.steps:
            raise ValueError(f"parts of {self.sizes} steps do not fill a sequence of {self.steps}")

    @classmethod
    def of(cls, parts: Sequence[Seq], places: Tensor | None = None) -> Joined:
        """Join parts of one batch and one width."""
        widths = {tuple(p.data.shape[2:]) for p in parts}
        if len(widths) != 1:
            raise ValueError(f"sequences are joined when they have one width, got {sorted(widths)}")
        mask = None if all(p.mask is None for p in parts) else torch.cat([p.valid() for p in parts], 1)
        return cls(torch.cat([p.data for p in parts], 1), mask, tuple(p.steps for p in parts), places)

    @property
    def parts(self) -> tuple[Seq, ...]:
        masks = (None,) * len(self.sizes) if self.mask is None else self.mask.split(self.sizes, 1)
        return tuple(Seq(data, mask) for data, mask in zip(self.data.split(self.sizes, 1), masks))

    def select(self, rows: Tensor) -> Joined:
        return self._with(lambda t: t[rows])

    def to(self, device: torch.device | str) -> Joined:
        return self._with(lambda t: t.to(device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Joined:
        data, mask, places = (None if t is None else change(t) for t in (self.data, self.mask, self.places))
        return Joined(data, mask, self.sizes, places)


def split_parts(seq: Seq, separator: int, count: int) -> tuple[tuple[Seq, ...], Tensor]:
    """The parts of each row of ids (B,S) between its separators, each a Seq of its own with padding on the
    right, and the place in the row of every step of them, laid end to end, -1 for padding.

    A row with fewer separators lacks the last parts, two neighbouring separators enclose a missing one. A
    part that all rows lack has one masked step. The order of valid steps is kept, wherever the mask has
    holes. Raises ValueError where a row has more than ``count`` parts.
    """
    valid = seq.valid()
    cut = (seq.data == separator) & valid
    if bool((cut.sum(1) >= count).any()):
        most = int(cut.sum(1).max()) + 1
        raise ValueError(f"a row has {most} parts, {count} are expected")
    number = cut.long().cumsum(1)
    parts: list[Seq] = []
    places: list[Tensor] = []
    for k in range(count):
        member = valid & ~cut & (number == k)
        lengths = member.sum(1)
        size = max(1, int(lengths.max()))
        # A stable sort brings the part's steps to the front in their order.
        order = (~member).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        mask = torch.arange(size, device=seq.data.device) < lengths[:, None]
        data = torch.where(mask, seq.data.gather(1, order), torch.zeros_like(order))
        parts.append(Seq(data, None if bool(mask.all()) else mask))
        places.append(torch.where(mask, order, -1))
    return tuple(parts), torch.cat(places, 1)
