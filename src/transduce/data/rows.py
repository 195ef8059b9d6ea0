"""From the cells of a row to its texts, with everything that can be wrong with one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Collection, Mapping, Sequence

from transduce.core.errors import DataError, nearest

from .fields import SEPARATOR
from .quarantine import MAX_BAD, Bad

LONGEST = 10_000
"""Longest text of a row, in characters; longer rows are a mistake in the file far more often than data."""

Columns = tuple[str, str]
"""Names of the source and the target column; ``de+fr`` joins the columns de and fr."""

MISSING = object()
"""What a row holds in a column that it has not."""

ESCAPED = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as Python reads them with ``surrogateescape``."""

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters that no editor writes; those that count as white space are let through.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class Rules:
    """How files are read: which columns, how several are joined, how many rows, how many may be broken.

    ``joins``: what stands between the joined texts of a source and of a target.
    """

    columns: Columns | None = None
    joins: tuple[str, str] = (SEPARATOR, SEPARATOR)
    max_bad: float = MAX_BAD
    max_rows: int | None = None
    on_bad: Callable[[Bad], None] | None = None


def join_of(units: str | None) -> str:
    """What stands between joined texts: for words it must be a word of its own."""
    return f" {SEPARATOR} " if units == "words" else SEPARATOR


@dataclass(frozen=True)
class Side:
    """A source or a target (or a "text"): the columns that it is joined from."""

    name: str
    columns: tuple[Any, ...]
    join: str = SEPARATOR


def sides(path: Path, rules: Rules, known: Collection[str], nested: bool = True) -> tuple[Side, ...]:
    """The sides of a table with the columns ``known``: source and target, or where it has neither (and none
    was asked for) its column "text".

    In formats with ``nested`` values a name with dots may lead into them (``translation.de``); those without
    (.tsv, .csv) hold no lone column "text" either. Raises :class:`DataError` for a column that is not there.
    """
    if nested and rules.columns is None and "text" in known and not {"source", "target"} & set(known):
        return (Side("text", ("text",)),)
    wanted = rules.columns or ("source", "target")
    return tuple(
        Side(side, _parts(path, name, known, nested), join)
        for side, name, join in zip(("source", "target"), wanted, rules.joins)
    )


def _parts(path: Path, name: str, known: Collection[str], dotted: bool) -> tuple[str, ...]:
    has = lambda column: column in known or (dotted and column.split(".", 1)[0] in known)
    parts = (name,) if has(name) else tuple(name.split("+"))
    for part in parts:
        if not has(part):
            raise DataError(no_column(path, part, known))
    return parts


def no_column(path: Path, missing: str, found: Collection[str]) -> str:
    return (
        f'{path} has no column "{missing}".{nearest(missing, found)} It has {", ".join(found)}; '
        "see --source-column and --target-column."
    )


def cell(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; dots lead into named values."""
    if column in row:
        return row[column]
    for name in column.split("."):
        if not isinstance(row, Mapping) or name not in row:
            return MISSING
        row = row[name]
    return row


def read_row(
    where: tuple[Path, str, int], wanted: Sequence[Side], get: Callable[[Any], Any], raw: str, lines: int = 1
) -> tuple[str | None, str] | Bad:
    """The source (None for texts) and the target of a row, or what is wrong with it.

    ``where``: file, "line" or "row", number. ``get`` gives the value of a column.
    """

    def broken(reason: str, message: str) -> Bad:
        path, unit, number = where
        return Bad(path, number, reason, f"{path} {unit} {number} {message}", raw, lines)

    texts: list[str] = []
    for side in wanted:
        pieces: list[str] = []
        for column in side.columns:
            value = get(column)
            if value is MISSING:
                return broken("a missing column", f'has no column "{column}"')
            if value is None or value != value:
                return broken(
                    "a missing value", f'has no value in column "{column}"; remove the row or fill it'
                )
            if not isinstance(value, str):
                return broken("no text", f'is broken: column "{column}" is not text')
            pieces.append(value.strip())
        text = pieces[0] if len(pieces) == 1 else side.join.join(pieces)
        if not all(pieces):
            empty = "" if len(pieces) == 1 else f" (column {side.columns[pieces.index('')]})"
            return broken(
                f"an empty {side.name}", f"has an empty {side.name}{empty}; remove the row or fill it"
            )
        if len(text) > LONGEST:
            return broken(
                f"an over-long {side.name}",
                f"has a {side.name} of {len(text):,} characters; {LONGEST:,} are allowed, so split it up",
            )
        problem = unreadable(text)
        if problem is not None:
            return broken(problem[0], f"has {problem[1]} in its {side.name}; repair or remove it")
        texts.append(text)
    return (texts[0], texts[1]) if len(texts) == 2 else (None, texts[0])


def unreadable(text: str) -> tuple[str, str] | None:
    """The reason and the description of characters that no text should hold."""
    if not text.isascii() and _SURROGATE.search(text):
        return "half a character", "half a character (a lone surrogate)"
    found = _CONTROL.search(text)
    if found is not None:
        return "a control character", f"the control character U+{ord(found[0]):04X}"
    return None
