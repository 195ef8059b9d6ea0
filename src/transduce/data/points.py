"""Fields that are not text: a list of points, and a list of positions in the source.

A text column holds both in a readable form. Points: numbers joined by commas, white space between points
(``0.12,0.34 0.5,0.9``). Positions: whole numbers from 1, white space between them (``1 4 2``); position k is the
k-th element of the row's own source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Iterable, Sequence

from transduce.core.errors import DataError
from transduce.core.seq import EOS, UNK

Point = tuple[float, ...]
FIRST = UNK + 1
"""The id of position 1: ids below stand for padding, begin, end and unknown in every target."""
MOST = 10_000
"""Positions that can be written: a source text has at most so many characters."""


@dataclass(frozen=True)
class PointField:
    """A column of points with ``width`` coordinates each.

    A model reads ``(p - shift) / scale``: ``shift`` is the mean point of the training part and ``scale`` one number
    for all coordinates, so that angles and ratios of lengths stay what they are. Raises :class:`DataError`.
    """

    width: int
    shift: Point
    scale: float

    units = "points"

    def __post_init__(self) -> None:
        fits = self.width >= 1 and len(self.shift) == self.width
        if not fits or not all(map(math.isfinite, self.shift)) or not 0 < self.scale < math.inf:
            raise DataError("This description of points is damaged: its width, shift and scale do not fit.")

    @classmethod
    def learn(cls, texts: Iterable[str]) -> PointField:
        """Width, mean and spread of the points in ``texts``."""
        points = [p for text in texts for p in read_points(text)]
        if not points:
            raise DataError("This column holds no points: every row is empty.")
        width, count = len(points[0]), len(points)
        other = next((p for p in points if len(p) != width), None)
        if other is not None:
            raise DataError(
                f"Points need one number of coordinates, but {_write(points[0])} has {width} and {_write(other)} "
                f"has {len(other)}; give every point the same."
            )
        shift = tuple(math.fsum(column) / count for column in zip(*points))
        spread = math.sqrt(math.fsum((a - b) ** 2 for p in points for a, b in zip(p, shift)) / (count * width))
        return cls(width, shift, spread if 0 < spread < math.inf else 1.0)

    @property
    def size(self) -> int:
        """Coordinates of a point: what a model reads at each step."""
        return self.width

    def encode(self, text: str) -> list[Point]:
        """The points as a model reads them."""
        points = read_points(text)
        wrong = next((p for p in points if len(p) != self.width), None)
        if wrong is not None:
            raise DataError(
                f"The point {_write(wrong)} has {len(wrong)} coordinates; these data have {self.width} a point."
            )
        return [tuple((a - b) / self.scale for a, b in zip(p, self.shift)) for p in points]

    def pieces(self, points: Iterable[Sequence[float]]) -> list[str]:
        """Encoded points as they are written, for tables and pictures."""
        return [_write([a * self.scale + b for a, b in zip(p, self.shift)]) for p in points]

    def unknown(self, text: str) -> list[str]:
        """Every point can be read, so nothing is unknown."""
        return []

    def id_of(self, symbol: str) -> None:
        """None: points have no ids."""

    def to_json(self) -> dict[str, Any]:
        return {"units": self.units, "width": self.width, "shift": list(self.shift), "scale": self.scale}

    @classmethod
    def from_json(cls, stored: Any) -> PointField:
        try:
            shift = tuple(float(a) for a in stored["shift"])
            return cls(int(stored["width"]), shift, float(stored["scale"]))
        except (TypeError, KeyError, ValueError) as problem:
            if isinstance(problem, DataError):
                raise
            raise DataError("This description of points is damaged.") from None


@dataclass(frozen=True)
class PositionField:
    """A column of positions in the row's own source; position k has the id k + 3.

    ``longest``: the most elements a source of the training part has. A model with one output for each id is bound to
    ``size``; a pointer is not, and any position up to :data:`MOST` can be written. Raises :class:`DataError`.
    """

    longest: int

    units = "positions"

    def __post_init__(self) -> None:
        if not 1 <= self.longest <= MOST:
            raise DataError(f"Positions reach from 1 to {MOST:,}; this column goes to {self.longest:,}.")

    @classmethod
    def learn(cls, texts: Iterable[str]) -> PositionField:
        """The largest position that occurs."""
        largest = max((k for text in texts for k in read_positions(text)), default=0)
        if largest == 0:
            raise DataError("This column holds no positions: every row is empty.")
        return cls(largest)

    @property
    def size(self) -> int:
        return FIRST + self.longest

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The name of every id that can be written; more of them than :attr:`size`."""
        return ("<pad>", "<bos>", "<eos>", "<unk>", *map(str, range(1, MOST + 1)))

    def encode(self, text: str) -> list[int]:
        """Ids without BOS and EOS."""
        return [UNK + k for k in read_positions(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Positions as they are written, for tables and pictures."""
        return [self.symbols[i] for i in ids if i > EOS]

    def unknown(self, text: str) -> list[str]:
        """Every position can be written, so nothing is unknown."""
        return []

    def id_of(self, symbol: str) -> int | None:
        """The id of one position; None for what is no position."""
        return UNK + int(symbol) if symbol.isdecimal() and 1 <= int(symbol) <= MOST else None

    def to_json(self) -> dict[str, Any]:
        return {"units": self.units, "longest": self.longest}

    @classmethod
    def from_json(cls, stored: Any) -> PositionField:
        try:
            return cls(int(stored["longest"]))
        except (TypeError, KeyError, ValueError) as problem:
            if isinstance(problem, DataError):
                raise
            raise DataError("This description of positions is damaged.") from None


def read_points(text: str) -> list[Point]:
    """ "0,1 2,3" -> [(0.0, 1.0), (2.0, 3.0)]. Raises :class:`DataError` for what is no list of points."""
    points: list[Point] = []
    for piece in text.split():
        try:
            point = tuple(float(number) for number in piece.split(","))
        except ValueError:
            point = (math.nan,)
        if not all(map(math.isfinite, point)):
            raise DataError(
                f'"{piece[:40]}" is not a point: write its coordinates with commas between them and white space '
                "between points, such as 0.12,0.34 0.5,0.9."
            )
        points.append(point)
    return points


def read_positions(text: str) -> list[int]:
    """ "1 4 2" -> [1, 4, 2]. Raises :class:`DataError` for what is no list of positions."""
    for piece in text.split():
        if not (piece.isascii() and piece.isdecimal() and len(piece) <= 6 and 1 <= int(piece) <= MOST):
            raise DataError(
                f'"{piece[:40]}" is not a position: positions are whole numbers from 1 to {MOST:,} with white space '
                "between them, such as 1 4 2."
            )
    return [int(piece) for piece in text.split()]


def _write(point: Sequence[float]) -> str:
    return ",".join(f"{a:.4g}" for a in point)
