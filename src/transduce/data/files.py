"""A user's own files: .tsv, .csv, .jsonl with a source and a target column, or .txt for language models."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Iterable, Iterator, Sequence

from transduce.core.errors import DataError, nearest

from .batching import Example
from .split import split

FORMATS = (".tsv", ".csv", ".jsonl", ".txt")
LONGEST = 10_000
"""Longest text of a row, in characters; longer rows are a mistake in the file far more often than data."""

WINDOW = 256
"""Characters of a window of running text."""

Columns = tuple[str, str]


def is_path(name: str) -> bool:
    """True for what names a file or folder rather than a built-in corpus."""
    return Path(name).suffix in FORMATS or os.sep in name or "/" in name or Path(name).exists()


def read_parts(path: Path, columns: Columns | None) -> tuple[str, dict[str, list[Example]]]:
    """The kind ("pairs" or "text") and the examples by part, of one file or of a folder with a file a
    part."""
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    if path.is_dir():
        files = {name: _part_file(path, name) for name in ("train", "valid", "test")}
        kinds = {f.suffix == ".txt" for f in files.values()}
        if len(kinds) > 1:
            raise DataError(f"{path} mixes .txt files with tables; give all three parts in one format.")
        return ("text" if kinds.pop() else "pairs"), {n: _read(f, columns) for n, f in files.items()}
    examples = _read(path, columns)
    if path.suffix == ".txt":
        return "text", split(examples)
    parts = split(merged(examples))
    if not parts["train"] or not parts["valid"]:
        raise DataError(
            f"{path} has too few different sources to train and validate on; it needs at least two."
        )
    return "pairs", parts


def _part_file(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in FORMATS if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise DataError(
            f"The folder {folder} has no {name} file: it needs train, valid and test, each {', '.join(FORMATS)}."
        )
    return found[0]


def merged(examples: Iterable[Example]) -> list[Example]:
    """Rows of one source become one example with several references."""
    by_source: dict[str, list[str]] = {}
    for example in examples:
        by_source.setdefault(example.source, []).append(example.target)
    return [Example(s, targets[0], tuple(dict.fromkeys(targets))) for s, targets in by_source.items()]


def _read(path: Path, columns: Columns | None) -> list[Example]:
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is not a kind of file that is read here; give one of {', '.join(FORMATS)}.")
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} holds the byte 0x{raw[problem.start]:02x}; save the file as UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    if path.suffix == ".txt":
        return _read_text(path, text)
    rows = _read_jsonl(path, text, columns) if path.suffix == ".jsonl" else _read_table(path, text, columns)
    examples = [_checked(path, line, source, target) for line, source, target in rows]
    if not examples:
        raise DataError(f"{path} has a header but no rows.")
    return examples


def _read_text(path: Path, text: str) -> list[Example]:
    lines = [line for line in text.splitlines() if line.strip()]
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
    of exactly two columns without such a header is read by position, its first line included.
    """
    if path.suffix == ".tsv":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as problem:
        raise DataError(f"{path} line {reader.line_num} is not valid {path.suffix[1:]}: {problem}.") from None
    header = rows[0][1]
    wanted = columns or ("source", "target")
    if all(name in header for name in wanted):
        source, target = (header.index(name) for name in wanted)
        rows = rows[1:]
    elif columns is None and len(header) == 2:
        source, target = 0, 1
    else:
        missing = next(name for name in wanted if name not in header)
        raise DataError(_no_column(path, missing, header))
    for line, row in rows:
        if len(row) <= max(source, target):
            raise DataError(
                f"{path} line {line} has {len(row)} columns; {max(source, target) + 1} are needed."
            )
        yield line, row[source], row[target]


def _read_jsonl(path: Path, text: str, columns: Columns | None) -> Iterator[tuple[int, str, str]]:
    wanted = columns or ("source", "target")
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
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
    return Example(source, target, (target,))
