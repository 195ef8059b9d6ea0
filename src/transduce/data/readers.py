"""Readers of .tsv, .csv, .jsonl and .txt, line by line, so that a file need not fit into memory.

Each yields ``(source, target)`` (the source is None for texts) or a :class:`Bad` row. What is wrong with a
file as a whole is a :class:`DataError` at once.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Callable, Iterator, TextIO

from transduce.core.errors import DataError

from .quarantine import Bad
from .rows import ESCAPED, LONGEST, MISSING, Rules, Side, cell, no_column, read_row, sides, unreadable

WINDOW = 256
"""Characters of a window of running text."""

_MOST = 1 << 22  # characters of a line that are read; the rest of a longer one is skipped

Found = tuple[str | None, str] | Bad


class RunningText(Exception):
    """A .txt file has a line too long to be a text of its own, so it is one running text."""


class Progress:
    """How much of a file has been read, as a share. A reader sets ``share``."""

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 1.0


def format_of(path: Path) -> str:
    """The suffix that says how to read a file, that of the compression left out."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


@contextmanager
def opened(path: Path, progress: Progress) -> Iterator[TextIO]:
    """The text of a file; bytes that are no UTF-8 come as escapes. Refusals are :class:`DataError`."""
    try:
        with open(path, "rb") as raw:
            size = max(1, os.fstat(raw.fileno()).st_size)
            if raw.seekable():
                progress.share = lambda: raw.tell() / size
            stream = gzip.open(raw) if path.suffix == ".gz" else raw
            begin = stream.peek(2)
            if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise DataError(
                    f"{path} is not UTF-8: line 1 holds the byte 0x{begin[0]:02x}; save the file as UTF-8."
                )
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path} is not a whole gzip file; compress it anew.") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}.") from None


def lines(stream: TextIO) -> Iterator[tuple[str, bool]]:
    """Lines as editors count them, and whether the line was too long to be read whole. ``str.splitlines``
    would also break a text at U+2028, U+0085 and the like."""
    while line := stream.readline(_MOST):
        cut = len(line) == _MOST and line[-1] != "\n"
        while cut and (more := stream.readline(_MOST)) and more[-1] != "\n":
            pass
        yield line.removesuffix("\n").removesuffix("\r"), cut


def _undecodable(path: Path, number: int, line: str, count: int = 1) -> Bad | None:
    found = None if line.isascii() else ESCAPED.search(line)
    if found is None:
        return None
    before = 0 if count == 1 else line.count("\n", 0, found.start())
    message = (
        f"{path} is not UTF-8: line {number + before} holds the byte 0x{ord(found[0]) - 0xDC00:02x}; "
        "save the file as UTF-8"
    )
    return Bad(path, number, "not UTF-8", message, line, count)


# ---------------------------------------------------------------- tables


class _Feed:
    """Lines for the csv module, which remembers those of the present row."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = lines(stream)
        self.number, self.taken = 0, []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line, _ = next(self._lines)
        self.number += 1
        self.taken.append(line)
        return line + "\n"

    @property
    def first(self) -> int:
        return self.number - len(self.taken) + 1

    @property
    def raw(self) -> str:
        return "\n".join(self.taken)


def read_table(path: Path, rules: Rules, progress: Progress) -> Iterator[Found]:
    """Rows of a .tsv (tab between columns, nothing quoted) or .csv (RFC 4180) file.

    With a header that names the wanted columns ("source" and "target" unless given) those are read. A file
    of exactly two columns whose first line holds neither name is read by position, that line included. No
    row may have more columns than the first one: its text would be cut off.
    """
    with opened(path, progress) as stream:
        rows = _table_rows(path, stream)
        first = next(rows, None)
        if first is None:
            return
        if isinstance(first, Bad):
            raise DataError(f"{first.message}.")
        header = first[0]
        by_position = rules.columns is None and len(header) == 2 and not {"source", "target"} & set(header)
        names = ["source", "target"] if by_position else header
        wanted = sides(path, rules, names, nested=False)
        places = {column: names.index(column) for side in wanted for column in side.columns}
        for row in chain([first] if by_position else [], rows):
            yield row if isinstance(row, Bad) else _table_row(path, row, wanted, places, len(header))


_Row = tuple[list[str], int, str, int]
"""Cells, first line, raw text, number of lines."""


def _table_rows(path: Path, stream: TextIO) -> Iterator[_Row | Bad]:
    feed = _Feed(stream)
    kind = format_of(path)[1:]
    if kind == "tsv":
        reader = csv.reader(feed, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(feed, strict=True)
    while True:
        feed.taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            bad = _undecodable(path, feed.first, feed.raw, len(feed.taken))
            message, reason = f"{path} line {feed.first} is not valid {kind}: {problem}", f"not valid {kind}"
            if "field limit" in str(problem):
                reason = "an over-long text"
                message = (
                    f"{path} line {feed.first} has a text of over {csv.field_size_limit():,} characters; "
                    f"{LONGEST:,} are allowed, so split it up"
                )
            yield bad or Bad(path, feed.first, reason, message, feed.raw, len(feed.taken))
            continue
        if not any(cell.strip() for cell in row):
            continue
        yield _undecodable(path, feed.first, feed.raw, len(feed.taken)) or (
            row, feed.first, feed.raw, len(feed.taken)
        )  # fmt: skip


def _table_row(path: Path, row: _Row, wanted: tuple[Side, ...], places: dict[str, int], width: int) -> Found:
    cells, number, raw, count = row
    needed = 1 + max(places.values())
    if len(cells) < needed:
        message = f"{path} line {number} has {len(cells)} columns; {needed} are needed"
        return Bad(path, number, "too few columns", message, raw, count)
    if len(cells) > width and any(cell.strip() for cell in cells[width:]):
        mend = "quote texts that hold a comma" if format_of(path) == ".csv" else "remove tabs inside of texts"
        message = f"{path} line {number} has {len(cells)} columns, the first line {width}; {mend}"
        return Bad(path, number, "too many columns", message, raw, count)
    return read_row((path, "line", number), wanted, lambda c: cells[places[c]], raw, count)


# ---------------------------------------------------------------- objects


def read_objects(path: Path, rules: Rules, progress: Progress) -> Iterator[Found]:
    """Rows of a .jsonl file: an object a line with the wanted columns, or with a "text" where it has neither
    a source nor a target."""
    wanted: tuple[Side, ...] | None = None
    with opened(path, progress) as stream:
        for number, (content, cut) in enumerate(lines(stream), 1):
            if not content.strip():
                continue
            row = _undecodable(path, number, content) or _object(path, number, content, cut)
            if isinstance(row, Bad):
                yield row
                continue
            if wanted is None:
                wanted = sides(path, rules, list(row))
                for column in (c for side in wanted for c in side.columns):
                    if cell(row, column) is MISSING:
                        raise DataError(f"{no_column(path, column, list(row))} (line {number})")
            yield read_row((path, "line", number), wanted, lambda c: cell(row, c), content)


def _object(path: Path, number: int, content: str, cut: bool) -> dict | Bad:
    if cut:
        message = f"{path} line {number} has over {_MOST:,} characters; split it up"
        return Bad(path, number, "an over-long line", message, content[:LONGEST])
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return Bad(path, number, "not valid JSON", f"{path} line {number} is not valid JSON", content)
    if isinstance(row, dict):
        return row
    message = f"{path} line {number} is not a JSON object with named columns"
    return Bad(path, number, "no JSON object", message, content)


# ---------------------------------------------------------------- texts


def read_texts(path: Path, rules: Rules, progress: Progress) -> Iterator[Found]:
    """A text a line. Raises :class:`RunningText` at a line that is too long to be one."""
    with opened(path, progress) as stream:
        for number, (line, cut) in enumerate(lines(stream), 1):
            if len(line) > LONGEST or cut:
                raise RunningText
            if not line.strip():
                continue
            problem = None if line.isascii() and line.isprintable() else unreadable(line)
            bad = _undecodable(path, number, line)
            if bad is None and problem is not None:
                message = f"{path} line {number} has {problem[1]}; repair or remove it"
                bad = Bad(path, number, problem[0], message, line)
            yield bad or (None, line)


def read_windows(path: Path, rules: Rules, progress: Progress) -> Iterator[Found]:
    """Running text in windows of ``WINDOW`` characters, one behind the other."""
    number = 1
    with opened(path, progress) as stream:
        while window := stream.read(WINDOW):
            yield _undecodable(path, number, window, 1 + window.count("\n")) or (None, window)
            number += window.count("\n")
