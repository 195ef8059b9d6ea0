"""Does a model use all parts of its source? Take one away, or put another row's in its place, and look."""

from __future__ import annotations

from typing import Sequence

from transduce.core.errors import UserError
from transduce.data.fields import SEPARATOR


def with_swapped_part(sources: Sequence[str], part: int) -> list[str]:
    """Each source with its part ``part`` (from 0) taken from the next row, the last row's from the first.

    A model that reads the part must do worse on these (the adversarial evaluation of Libovický et al. 2018,
    arXiv 1811.04716, section 5). Raises :class:`UserError` where a source lacks the part or there is one row
    only.
    """
    if len(sources) < 2:
        raise UserError("Parts are swapped between rows: give at least two sources.")
    rows = [_parts(s, part) for s in sources]
    others = [row[part] for row in (*rows[1:], rows[0])]
    return [SEPARATOR.join((*row[:part], other, *row[part + 1 :])) for row, other in zip(rows, others)]


def without_part(sources: Sequence[str], part: int) -> list[str]:
    """Each source with its part ``part`` (from 0) left empty, its separators kept."""
    rows = [_parts(s, part) for s in sources]
    return [SEPARATOR.join((*row[:part], "", *row[part + 1 :])) for row in rows]


def _parts(source: str, part: int) -> list[str]:
    parts = source.split(SEPARATOR)
    if not 0 <= part < len(parts):
        raise UserError(
            f"There is no part {part + 1} in the source {source[:40]!r}: it has {len(parts)}, joined by {SEPARATOR}."
        )
    return parts
