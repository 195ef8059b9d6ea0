"""A user's own files: .tsv, .csv, .jsonl with a source and a target column, or .txt for language models.

Each may be compressed (.tsv.gz and so on).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from pathlib import Path
from typing import Iterable, Iterator, Sequence

from transduce.core.errors import DataError, nearest

from .batching import Example
from .fields import lone_surrogates
from .split import merged, split

FORMATS = (".tsv", ".csv", ".jsonl", ".txt")
LONGEST = 10_000
"""Longest text of a row, in characters; longer rows are a mistake in the file far more often than data."""

WINDOW = 256
"""Characters of a window of running text."""

Columns = tuple[str, str]


def is_path(name: str) -> bool:
    """True for what names a file or folder rather than a built-in corpus."""
    return _format(Path(name)) in FORMATS or os.sep in name or "/" in name or os.path.exists(name)


def _format(path: Path) -> str:
    """The suffix that says how to read a file, that of the compression left out."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_parts(path: Path, columns: Columns | None) -> tuple[str, dict[str, list[Example]]]:
    """The kind ("pairs" or "text") and the examples by part, of one file or of a folder with a file a
    part."""
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder {path}.")
    if path.is_dir():
        files = {name: _part_file(path, name) for name in ("train", "valid", "test")}
        kinds = {_format(f) == ".txt" for f in files.values()}
        if len(kinds) > 1:
            raise DataError(f"{path} mixes .txt files with tables; give all three parts in one format.")
        kind = "text" if kinds.pop() else "pairs"
        found = {name: _read(file, columns) for name, file in files.items()}
        return kind, found if kind == "text" else {name: merged(rows) for name, rows in found.items()}
    kind = "text" if _format(path) == ".txt" else "pairs"
    examples = _read(path, columns)
    parts = split(merged(examples) if kind == "pairs" else examples)
    if not all(parts.values()):
        rows = "sources" if kind == "pairs" else "texts"
        raise DataError(
            f"{path} has too few different {rows} to train, validate and test on; it needs at least three."
        )
    return kind, parts


def _part_file(folder: Path, name: str) -> Path:
    stems = ("valid", "dev") if name == "valid" else (name,)
    wanted = [folder / f"{s}{suffix}{gz}" for s in stems for suffix in FORMATS for gz in ("", ".gz")]
    found = [path for path in wanted if path.is_file()]
    if not found:
        raise DataError(
            f"The folder {folder} has no {name} file: it needs train, valid and test, each {', '.join(FORMATS)}."
        )
    if len(found) > 1:
        raise DataError(
            f"The folder {folder} has {' and '.join(p.name for p in found)}; keep the one to read as {name}."
        )
    return found[0]


def _read(path: Path, columns: Columns | None) -> list[Example]:
    if _format(path) not in FORMATS:
        raise DataError(f"{path} is not a kind of file that is read here; give one of {', '.join(FORMATS)}.")
    raw = _bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} holds the byte 0x{raw[problem.start]:02x}; save the file as UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    if _format(path) == ".txt":
        return _read_text(text)
    read = _read_jsonl if _format(path) == ".jsonl" else _read_table
    rows = read(path, text, columns)
    examples = [_checked(path, line, source, target) for line, source, target in rows]
    if not examples:
        raise DataError(f"{path} has a header but no rows.")
    return examples


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            return stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path} is not a whole gzip file; compress it anew.") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}.") from None


def _lines(text: str) -> list[str]:
    """Lines as editors count them. ``str.splitlines`` would also break a text at U+2028, U+0085 and the like."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _read_text(text: str) -> list[Example]:
    lines = [line for line in _lines(text) if line.strip()]
    long = next((i for i, line in enumerate(lines) if len(line) > LONGEST), None)
    if long is not None:
        return windows(text, WINDOW)
    return [Example(None, line, (line,)) for line in lines]


def windows(text: str, size: int) -> list[Example]:
    """Text cut into consecutive windows of ``size`` characters."""
    cuts = (text[i : i + size] for i in range(0, len(text), size))
    return [Example(None, cut, (cut,)) for cut in cuts]


def are_windows(examples: Sequence[Example]) -> bool:
    """True for texts as :func:`windows` cuts them: all of one length, but for the last of each of three files."""
    odd = sum(len(e.target) != WINDOW for e in examples)
    return odd <= 3 and odd < len(examples)


def _read_table(path: Path, text: str, columns: Columns | None) -> Iterator[tuple[int, str, str]]:
    """Rows of a .tsv (tab between columns, nothing quoted) or .csv (RFC 4180) file.

    With a header that names the wanted columns ("source" and "target" unless given) those are read. A file
    of exactly two columns whose first line holds neither name is read by position, that line included. No
    row may have more columns than the first one: its text would be cut off.
    """
    if _format(path) == ".tsv":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as problem:
        if "field limit" in str(problem):
            raise DataError(
                f"{path} line {reader.line_num} has a text of over {csv.field_size_limit():,} characters; "
                f"{LONGEST:,} are allowed, so split it up."
            ) from None
        kind = _format(path)[1:]
        raise DataError(f"{path} line {reader.line_num} is not valid {kind}: {problem}.") from None
    header = rows[0][1]
    wanted = columns or ("source", "target")
    if all(name in header for name in wanted):
        source, target = (header.index(name) for name in wanted)
        rows = rows[1:]
    elif columns is None and len(header) == 2 and not any(name in header for name in wanted):
        source, target = 0, 1
    else:
        missing = next(name for name in wanted if name not in header)
        raise DataError(_no_column(path, missing, header))
    for line, row in rows:
        if len(row) <= max(source, target):
            raise DataError(
                f"{path} line {line} has {len(row)} columns; {max(source, target) + 1} are needed."
            )
        if any(cell.strip() for cell in row[len(header) :]):
            csv_file = _format(path) == ".csv"
            mend = "quote texts that hold a comma" if csv_file else "remove tabs inside of texts"
            raise DataError(
                f"{path} line {line} has {len(row)} columns, the first line {len(header)}; {mend}."
            )
        yield line, row[source], row[target]


def _read_jsonl(path: Path, text: str, columns: Columns | None) -> Iterator[tuple[int, str, str]]:
    wanted = columns or ("source", "target")
    for line, content in enumerate(_lines(text), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            raise DataError(f"{path} line {line} is not valid JSON.") from None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {line} is not a JSON object with named columns.")
        for name in wanted:
            if name not in row:
                raise DataError(_no_column(path, name, list(row)) + f" (line {line})")
            if not isinstance(row[name], str):
                raise DataError(f'{path} line {line}: column "{name}" is not text.')
        yield line, row[wanted[0]], row[wanted[1]]


def _no_column(path: Path, missing: str, found: list[str]) -> str:
    return f'{path} has no column "{missing}".{nearest(missing, found)} It has {", ".join(found)}; see --source-column and --target-column.'


def _checked(path: Path, line: int, source: str, target: str) -> Example:
    source, target = source.strip(), target.strip()
    for name, text in (("source", source), ("target", target)):
        if not text:
            raise DataError(f"{path} line {line} has an empty {name}; remove the row or fill it.")
        if len(text) > LONGEST:
            raise DataError(
                f"{path} line {line} has a {name} of {len(text):,} characters; {LONGEST:,} are allowed, so split it up."
            )
        if lone_surrogates(text):
            raise DataError(
                f"{path} line {line} has half a character (a lone surrogate) in its {name}; repair or remove it."
            )
    return Example(source, target, (target,))
