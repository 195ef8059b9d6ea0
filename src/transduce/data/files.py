"""A user's own files: .tsv, .csv, .jsonl, .parquet with a source and a target column, or .txt for language
models; alone, or as a folder with one or several files for each part.

All but .parquet may be compressed (.tsv.gz and so on).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from transduce.core.errors import DataError

from . import hub, memory
from .arrow import read_parquet
from .compare import are_swapped, overlaps, swap_note
from .examples import Example, Examples, Rows
from .quarantine import Bad, Quarantine
from .readers import (
    WINDOW,
    Found,
    Progress,
    RunningText,
    format_of,
    read_objects,
    read_table,
    read_texts,
    read_windows,
)
from .rows import LONGEST, Columns, Rules
from .split import carve, split

__all__ = ["FORMATS", "LONGEST", "WINDOW", "Columns", "Part", "Rules", "are_windows", "is_path", "read_part",
           "read_parts", "windows"]  # fmt: skip

FORMATS = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")
PARTS = ("train", "valid", "test")
STEMS = {"train": ("train",), "valid": ("valid", "dev", "validation"), "test": ("test",)}
_SHARD = re.compile(r"[-_.]?\d+(?:-of-(\d+))?")

LOOK_EVERY = 1 << 14
"""Rows between two looks at how much memory all of them will take."""
LOOK_FROM = 1 << 24
"""Bytes of text below which nobody has to look."""
NEED = 2.2
"""Memory that training takes for every byte that the rows themselves do: symbols, order, room to sort."""

_READERS: dict[str, Callable[[Path, Rules, Progress], Iterator[Found]]] = {
    ".tsv": read_table,
    ".csv": read_table,
    ".jsonl": read_objects,
    ".parquet": read_parquet,
    ".txt": read_texts,
}


@dataclass(frozen=True)
class Part:
    """What was read for one part: the good rows and what is wrong with the others."""

    kind: str
    examples: Examples
    quarantine: Quarantine
    windowed: bool = False


def is_path(name: str) -> bool:
    """True for what names a file, a folder or an ``hf:`` data set rather than a built-in corpus."""
    if name.startswith(hub.PREFIX):
        return True
    return format_of(Path(name)) in FORMATS or os.sep in name or "/" in name or os.path.exists(name)


# ---------------------------------------------------------------- which files


def part_files(folder: Path, name: str) -> list[Path]:
    """The files of a part: ``train.tsv``, numbered ones (``train-00.parquet``, ``train-00000-of-00003.tsv``) or
    all in a folder ``train``."""
    alone, numbered, folders = [], [], []
    for path in sorted(folder.iterdir()):
        stem, kind = _stem(path), format_of(path)
        for wanted in STEMS[name]:
            if path.is_dir() and path.name == wanted:
                folders.append(path)
            elif not path.is_file() or kind not in FORMATS:
                continue
            elif stem == wanted:
                alone.append(path)
            elif stem.startswith(wanted) and (match := _SHARD.fullmatch(stem[len(wanted) :])):
                numbered.append((path, int(match[1] or 0)))
    ways = [*alone, *folders, *([numbered[0][0]] if numbered else [])]
    if not ways:
        raise DataError(
            f"The folder {folder} has no {name} file: it needs train, valid and test, each {', '.join(FORMATS)}."
        )
    if len(ways) > 1:
        ways.sort(key=lambda p: FORMATS.index(format_of(p)) if format_of(p) in FORMATS else -1)
        raise DataError(
            f"The folder {folder} has {' and '.join(p.name for p in ways)}; keep the one to read as {name}."
        )
    if folders:
        files = [p for p in sorted(folders[0].iterdir()) if p.is_file() and format_of(p) in FORMATS]
        if not files:
            raise DataError(f"The folder {folders[0]} has no file to read; give it {', '.join(FORMATS)}.")
    else:
        files = alone or [path for path, _ in numbered]
    announced = {count for _, count in numbered if count}
    if announced and announced != {len(files)}:
        raise DataError(
            f"The folder {folder} has {len(files)} of {max(announced)} {name} files; some are missing."
        )
    kinds = {format_of(p) for p in files}
    if len(kinds) > 1:
        raise DataError(
            f"The {name} files in {folder} are {' and '.join(sorted(kinds))}; give them in one format."
        )
    return files


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(format_of(path)) if path.suffix else path.name


# ---------------------------------------------------------------- reading


def read_part(files: Sequence[Path], rules: Rules) -> Part:
    """All rows of some files of one format, broken ones set aside. The share of these is not judged here."""
    for path in files:
        if format_of(path) not in FORMATS:
            raise DataError(
                f"{path} is not a kind of file that is read here; give one of {', '.join(FORMATS)}."
            )
    sources = [(path, _READERS[format_of(path)]) for path in files]
    windowed = False
    try:
        rows, quarantine = _collect(sources, rules)
    except RunningText:
        windowed = True
        rows, quarantine = _collect([(path, read_windows) for path in files], rules)
    if not len(rows) and not quarantine.bad:
        empty = all(_is_blank(path) for path in files)
        raise DataError(f"{files[0]} is empty." if empty else f"{files[0]} has a header but no rows.")
    kind = (
        "text" if (rows.paired is None and format_of(files[0]) == ".txt") or rows.paired is False else "pairs"
    )
    return Part(kind, rows.examples(), quarantine, windowed)


def _is_blank(path: Path) -> bool:
    if format_of(path) == ".parquet":
        return False
    return not any(found for found in read_texts(path, Rules(), Progress()))


def _collect(sources: Sequence[tuple[Any, Callable]], rules: Rules) -> tuple[Rows, Quarantine]:
    """``sources``: what to read, and the function from it, rules and progress to its rows."""
    rows, quarantine = Rows(), Quarantine(rules.max_bad, rules.on_bad)
    for number, (source, read) in enumerate(sources):
        progress = Progress()
        found = read(source, rules, progress)
        if rules.max_rows is not None:
            found = islice(found, max(0, rules.max_rows - quarantine.rows))
        for row in found:
            if isinstance(row, Bad):
                quarantine.add(row)
                continue
            if rows.paired is not None and (row[0] is not None) != rows.paired:
                raise DataError(
                    f"{source} holds {_KIND[not rows.paired]}, the files before it {_KIND[rows.paired]}."
                )
            rows.add(*row)
            quarantine.good += 1
            if quarantine.good % LOOK_EVERY == 0 and rows.text_bytes >= LOOK_FROM:
                _look(source, rows, (number + progress.share()) / len(sources), rules)
    return rows, quarantine


_KIND = {True: "pairs of source and target", False: "texts"}


def _look(source: Any, rows: Rows, share: float, rules: Rules) -> None:
    """Refuse data that will not fit into memory, as soon as that can be seen."""
    share = max(share, len(rows) / rules.max_rows if rules.max_rows else 0.0, 1e-9)
    more, room = NEED * rows.nbytes / share - rows.nbytes, memory.available()
    if room is not None and share < 1.0 and more > room:
        fit = int(0.9 * len(rows) * (room + rows.nbytes) / (NEED * rows.nbytes))
        digits = 10 ** max(0, len(str(fit)) - 2)
        raise DataError(
            f"{source} would take {memory.size(more + rows.nbytes)} of memory and {memory.size(room + rows.nbytes)} are "
            f"free: read a part of it with --max-rows {max(1, fit // digits * digits)}, or use a larger machine."
        )


# ---------------------------------------------------------------- parts


def read_given(path: Path | str, rules: Rules = Rules()) -> dict[str, Part]:
    """What a file ("train" alone), a folder or an ``hf:`` data set holds by part, nothing judged or split."""
    name = os.fspath(path)
    if name.startswith(hub.PREFIX):
        read = {part: _read_dataset(name, split, rules) for part, split in hub.open_parts(name).items()}
    else:
        path = Path(path)
        if not os.path.exists(path):
            raise DataError(f"There is no file or folder {path}.")
        files = {part: part_files(path, part) for part in PARTS} if path.is_dir() else {"train": [path]}
        kinds = {format_of(f) == ".txt" for found in files.values() for f in found}
        if len(kinds) > 1:
            raise DataError(f"{path} mixes .txt files with tables; give all three parts in one format.")
        read = {part: read_part(found, rules) for part, found in files.items()}
    if len({part.kind for part in read.values() if len(part.examples)}) > 1:
        raise DataError(f"{name} mixes texts with pairs of source and target; give all parts in one form.")
    return read


def read_parts(
    path: Path | str, rules: Rules = Rules()
) -> tuple[str, dict[str, Sequence[Example]], list[str], bool]:
    """The kind ("pairs" or "text") and the examples of all three parts; what should be known about them, a
    sentence each; whether the texts are windows of a longer one.

    Raises :class:`DataError` where the data cannot be read, or more rows are broken than ``rules`` allow.
    """
    read = read_given(path, rules)
    for part in read.values():
        part.quarantine.enforce()
    kind = read["train"].kind
    notes = [note for part in read.values() if (note := part.quarantine.note())]
    parts = _completed({part: found.examples for part, found in read.items()})
    if not all(len(p) for p in parts.values()):
        rows = "sources" if kind == "pairs" else "texts"
        raise DataError(
            f"{path} has too few different {rows} to train, validate and test on; it needs at least three."
        )
    windowed = all(part.windowed for part in read.values())
    if not windowed:
        notes += overlaps(parts, kind)
    notes += [swap_note(n) for n in ("valid", "test") if n in read and are_swapped(parts["train"], parts[n])]
    return kind, parts, notes, windowed


def _read_dataset(name: str, data: Any, rules: Rules) -> Part:
    read = lambda source, rules, progress: hub.read_dataset(name, source, rules, progress)
    rows, quarantine = _collect([(data, read)], rules)
    if not len(rows) and not quarantine.bad:
        raise DataError(f"{name} has no rows.")
    return Part("text" if rows.paired is False else "pairs", rows.examples(), quarantine)


def _completed(parts: dict[str, Sequence[Example]]) -> dict[str, Sequence[Example]]:
    """All three parts. Those that the data do not bring are taken out of the training part, by source."""
    if set(parts) == {"train"}:
        return split(parts["train"])
    for name in PARTS:
        if name not in parts:
            parts["train"], parts[name] = carve(parts["train"], name)
    return {name: parts[name] for name in PARTS}


def windows(text: str, size: int) -> list[Example]:
    """Text cut into consecutive windows of ``size`` characters."""
    cuts = (text[i : i + size] for i in range(0, len(text), size))
    return [Example(None, cut, (cut,)) for cut in cuts]


def are_windows(examples: Sequence[Example]) -> bool:
    """True for texts as :func:`windows` cuts them: all of one length, but for the last of each of three files."""
    odd = sum(len(e.target) != WINDOW for e in examples)
    return odd <= 3 and odd < len(examples)
