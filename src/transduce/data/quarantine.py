"""Broken rows: collected with their reason instead of ending a run one by one, up to an allowed share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from transduce.core.errors import DataError

MAX_BAD = 0.01
"""Share of broken rows that training goes on without; above it the file as a whole is in question."""

SHOWN = 3
"""Broken rows of each reason that are remembered."""


@dataclass(frozen=True)
class Bad:
    """A broken row: where it is (``row`` counts lines, or rows where a format has no lines), the ``reason`` it
    has in common with others, a ``message`` for this one, its ``raw`` text, and how many lines are lost."""

    path: Path
    row: int
    reason: str
    message: str
    raw: str = ""
    lines: int = 1


class Quarantine:
    """The broken rows of one part of the data.

    ``limit``: share of all rows that may be broken. ``on_bad`` is told every one; only a few of each reason
    are kept here.
    """

    def __init__(self, limit: float = MAX_BAD, on_bad: Callable[[Bad], None] | None = None) -> None:
        if not 0.0 <= limit <= 1.0:
            raise DataError(
                f"--max-bad is a share of the rows, 0 to 1, not {limit:g}; 0.01 is one in a hundred."
            )
        self.limit, self.on_bad = limit, on_bad
        self.counts: Counter[str] = Counter()
        self.shown: dict[str, list[Bad]] = {}
        self.good = 0

    def add(self, bad: Bad) -> None:
        self.counts[bad.reason] += bad.lines
        shown = self.shown.setdefault(bad.reason, [])
        if len(shown) < SHOWN:
            shown.append(bad)
        if self.on_bad is not None:
            self.on_bad(bad)

    @property
    def bad(self) -> int:
        return self.counts.total()

    @property
    def rows(self) -> int:
        return self.good + self.bad

    @property
    def exceeded(self) -> bool:
        """More rows are broken than may be."""
        return self.bad > self.limit * self.rows

    def commonest(self) -> Bad:
        """The first row of the commonest reason."""
        return self.shown[self.counts.most_common(1)[0][0]][0]

    def enforce(self) -> None:
        """Raise :class:`DataError` where more rows are broken than may be, or all of them are."""
        if self.bad and (self.exceeded or not self.good):
            raise DataError(self.sentence())

    def sentence(self) -> str:
        first = self.commonest()
        alike = self.counts[first.reason]
        those = "" if alike == self.bad else f", {alike:,} of them so"
        are = "is" if self.bad == 1 else "are"
        return (
            f"{first.message} ({self.bad:,} of {self.rows:,} rows {are} broken{those}; {percent(self.limit)} may be: "
            "mend them or raise --max-bad, `transduce data check` lists them)."
        )

    def note(self) -> str | None:
        """One sentence on the rows that were left out; None where there are none."""
        if not self.bad:
            return None
        first = self.commonest()
        are = "is broken and was" if self.bad == 1 else "are broken and were"
        return (
            f"{first.path.name}: {self.bad:,} of {self.rows:,} rows {are} left out; most often: {first.reason}, first "
            f"in {'line' if first.path.suffix != '.parquet' else 'row'} {first.row:,}."
        )


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
